"""Contests of k-means and of mixtures.

Axes: N points, D features, K clusters or components, R restarts.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from jaxclust import checks
from jaxclust.algorithms import gmm, kmeans
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.benchmark import peers
from jaxclust.benchmark.contest import OURS, Contest, Group, Task, quietly
from jaxclust.encoding import as_points
from jaxclust.errors import InputError

# Ridge of mixtures, in units of the features' mean variance.
_REG = 1e-6

# Family -> products of D numbers for a point and a component, in half a step.
_PRODUCTS = {
  'full': lambda dim: dim,
  'tied': lambda dim: 1,
  'diag': lambda dim: 2,
  'spherical': lambda dim: 1,
}


def _check_at_most(name, value, most, things):
  if checks.check_count(name, value) > most:
    raise InputError(
      f'{name} is {value}, but there are only {most} {things}: ask for at most '
      'as many'
    )


def _check_kmeans(
  image_shape, num_clusters, num_restarts, many_clusters, many_steps
):
  _check_at_most('num_clusters', num_clusters, image_shape[0], 'images')
  _check_at_most('many_clusters', many_clusters, image_shape[0], 'images')
  checks.check_count('num_restarts', num_restarts)
  checks.check_count('many_steps', many_steps)


def _kmeans_contests(
  key, images, num_clusters, num_restarts, many_clusters, many_steps
):
  """Seeding, a fit to convergence, and some steps of a larger fit."""
  x = as_points(images)
  shape = f'{len(x):,} x {x.shape[1]}'

  def seed(num_clusters=num_clusters, num_restarts=num_restarts):
    state = kmeans.start(
      key, x, num_clusters=num_clusters, num_restarts=num_restarts
    )
    return np.asarray(kmeans.centers_of_runs(state))

  seedings = peers.tasks('seeding', x, num_clusters, num_restarts)
  passes = num_restarts * num_clusters * (3 + int(math.log(num_clusters)))
  yield Contest(
    f'seeding, {shape}, k = {num_clusters}, {num_restarts} starts',
    _scored(x, {OURS: Task(seed), **seedings}),
    tolerance=0.2,  # draws differ
    operations=2 * x.size * passes,
    numbers=2 * x.size * num_clusters,
  )
  yield _lloyd(
    f'k-means, {shape}, k = {num_clusters}, {num_restarts} starts',
    x,
    seed(),
    {'max_steps': 300, 'tol': 1e-4},
  )
  yield _lloyd(
    f'k-means, {shape}, k = {many_clusters}, {many_steps} steps',
    x,
    seed(many_clusters, 1),
    {'max_steps': many_steps, 'tol': 0.0},
  )


def _lloyd(name, x, starts, limits):
  """A contest of fits of k-means from starts `[R, K, D]`."""
  key = jax.random.key(0)  # it draws nothing
  options = {'num_clusters': starts.shape[1], 'init': starts}
  state, _ = kmeans.run(kmeans.start(key, x, **options), x, **limits)
  num_steps = np.asarray(state.num_steps)

  def fit():
    inertias = np.asarray(kmeans.fit(key, x, **options, **limits).inertias)
    return lambda: float(inertias.mean())

  others = peers.tasks('kmeans', x, starts, num_steps, **limits)
  passes = int(num_steps.sum())
  return Contest(
    name,
    {OURS: Task(quietly(fit)), **_scored(x, others)},
    tolerance=1e-3,
    operations=2 * x.size * starts.shape[1] * passes,
    numbers=x.size * passes,
  )


def _scored(x, tasks):
  """Tasks of centers `[R, K, D]`, whose objective is their mean inertia."""

  def mean_inertia(centers):
    return float(np.mean([-kmeans.score(c, x) for c in centers]))

  def scored(task):
    return functools.partial(mean_inertia, task.run())

  return {n: Task(functools.partial(scored, t)) for n, t in tasks.items()}


def _check_mixtures(image_shape, num_components, covariances, dims, em_steps):
  num_images, num_features = image_shape[0], math.prod(image_shape[1:])
  _check_at_most('num_components', num_components, num_images, 'images')
  checks.check_count('em_steps', em_steps)
  if len(covariances) != len(dims) or set(covariances) - set(FAMILIES):
    raise InputError(
      f'covariances are {tuple(covariances)}: there must be one for each of '
      f'the {len(dims)} dims, of {", ".join(FAMILIES)}'
    )
  for i, dim in enumerate(dims):
    _check_at_most(f'dims[{i}]', dim, num_features, 'numbers in an image')


def _em_contests(key, images, num_components, covariances, dims, em_steps):
  """Steps of EM on principal components of the pixels."""
  points = np.asarray(as_points(images))
  for covariance, dim in zip(covariances, dims, strict=True):
    pca = PCA(dim, svd_solver='covariance_eigh')
    x = jnp.asarray(pca.fit_transform(points), jnp.float32)
    options = {'num_components': num_components, 'covariance': covariance}
    state = gmm.start(key, x, init='random', reg=_REG, **options)
    run = functools.partial(_em_steps, state, x, em_steps)
    params, reg = gmm.best(state).params, _REG * float(state.frame.scale) ** 2
    yield Contest(
      f'EM, {covariance}, {len(x):,} x {dim}, k = {num_components}, a step',
      {
        OURS: Task(run, em_steps),
        **peers.tasks('em', x, params, reg, em_steps),
      },
      tolerance=1e-3,
      operations=4 * x.size * num_components * _PRODUCTS[covariance](dim),
      numbers=x.size,
    )


def _em_steps(state, x, num_steps):
  state, _ = gmm.run(state, x, max_steps=num_steps, tol=-1.0, reg=_REG)
  jax.block_until_ready(state)
  return lambda: float(gmm.best(state).log_likelihood)


KMEANS = Group(_check_kmeans, lambda **options: 3, _kmeans_contests)
MIXTURES = Group(
  _check_mixtures, lambda dims, **options: len(dims), _em_contests
)

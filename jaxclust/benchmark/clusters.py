"""Contests of k-means and of mixtures.

Axes: N points, D features, K clusters or components, R restarts.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from jaxclust import checks
from jaxclust.algorithms import gmm, kmeans
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.benchmark import peers
from jaxclust.benchmark.contest import OURS, Contest, Task, mean_inertia
from jaxclust.encoding import as_points
from jaxclust.errors import InputError

# Ridge of mixtures, in units of the features' mean variance.
_REG = 1e-6


def plan_kmeans(
  image_shape: Sequence[int],
  *,
  num_clusters: int,
  num_restarts: int,
  many_clusters: int,
  many_steps: int,
) -> list[Callable]:
  """Seeding, a fit to convergence, and some steps of a larger fit."""
  _check_at_most('num_clusters', num_clusters, image_shape[0], 'images')
  _check_at_most('many_clusters', many_clusters, image_shape[0], 'images')
  checks.check_count('num_restarts', num_restarts)
  checks.check_count('many_steps', many_steps)
  starts = _starts(num_restarts)
  fit = {'max_steps': 300, 'tol': 1e-4}
  many = {'max_steps': many_steps, 'tol': 0.0}
  return [
    functools.partial(_seeding, num_clusters, num_restarts),
    functools.partial(_lloyd, num_clusters, num_restarts, starts, fit),
    functools.partial(_lloyd, many_clusters, 1, f'{many_steps} steps', many),
  ]


def _check_at_most(name, value, most, things):
  if checks.check_count(name, value) > most:
    raise InputError(
      f'{name} is {value}, but there are only {most} {things}: ask for at most '
      'as many'
    )


def _starts(count):
  return 'one start' if count == 1 else f'{count} starts'


def name(work: str, x: jax.Array, num_clusters: int) -> str:
  """A name of work on points `[N, D]`."""
  return f'{work}, {len(x):,} x {x.shape[1]}, k = {num_clusters}'


def seed(
  key: jax.Array, x: jax.Array, init: str, num_clusters: int, num_restarts: int
) -> np.ndarray:
  """Centers `[R, K, D]` to start from."""
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  state = kmeans.start(key, x, init=init, **options)
  return np.asarray(kmeans.centers_of_runs(state))


def _seeding(num_clusters, num_restarts, key, images):
  x = as_points(images)
  return seeding(key, x, 'k-means++', num_clusters, num_restarts)


def seeding(
  key: jax.Array, x: jax.Array, init: str, num_clusters: int, num_restarts: int
) -> Contest:
  """Seeds of R runs, beside k-means++ of the peers."""

  def run():
    return mean_inertia(seed(key, x, init, num_clusters, num_restarts), x)

  passes = num_restarts * num_clusters * (3 + int(math.log(num_clusters)))
  return Contest(
    f'{name(init, x, num_clusters)}, {_starts(num_restarts)}',
    {OURS: Task(run), **peers.tasks('seeding', x, num_clusters, num_restarts)},
    tolerance=0.2,  # draws differ
    operations=2 * x.size * passes,
    numbers=2 * x.size * num_clusters,
  )


def _lloyd(num_clusters, num_restarts, length, limits, key, images):
  """Fits to pixels, from k-means++."""
  x = as_points(images)
  starts = seed(key, x, 'k-means++', num_clusters, num_restarts)
  return lloyd('kmeans', key, x, starts, length, **limits)


def lloyd(
  kind: str,
  key: jax.Array,
  x: jax.Array,
  starts: np.ndarray,
  length: str,
  tolerance: float = 1e-3,
  **limits: float,
) -> Contest:
  """Fits of k-means from the same starts `[R, K, D]`, in peers of a kind."""
  num_clusters = starts.shape[1]
  options = {'num_clusters': num_clusters, 'init': starts}
  state, _ = kmeans.run(kmeans.start(key, x, **options), x, **limits)
  num_steps = np.asarray(state.num_steps)

  def fit():
    inertias = np.asarray(kmeans.fit(key, x, **options, **limits).inertias)
    return lambda: float(inertias.mean())

  passes = int(num_steps.sum())
  return Contest(
    f'{name("k-means", x, num_clusters)}, {length}',
    {OURS: Task(fit), **peers.tasks(kind, x, starts, num_steps, **limits)},
    tolerance=tolerance,
    operations=2 * x.size * num_clusters * passes,
    numbers=x.size * passes,
  )


def plan_mixtures(
  image_shape: Sequence[int],
  *,
  num_components: int,
  covariances: Sequence[str],
  dims: Sequence[int],
  em_steps: int,
) -> list[Callable]:
  """Steps of EM on principal components of the pixels."""
  _check_at_most('num_components', num_components, image_shape[0], 'images')
  checks.check_count('em_steps', em_steps)
  if len(covariances) != len(dims) or set(covariances) - set(FAMILIES):
    raise InputError(
      f'covariances are {tuple(covariances)}: there must be one for each of '
      f'the {len(dims)} dims, of {", ".join(FAMILIES)}'
    )
  num_features = math.prod(image_shape[1:])
  for i, dim in enumerate(dims):
    _check_at_most(f'dims[{i}]', dim, num_features, 'numbers in an image')
  return [
    functools.partial(_em, num_components, covariance, dim, em_steps)
    for covariance, dim in zip(covariances, dims, strict=True)
  ]


def _em(num_components, covariance, dim, num_steps, key, images):
  pca = PCA(dim, svd_solver='covariance_eigh')
  points = pca.fit_transform(np.asarray(as_points(images)))
  x = jnp.asarray(points, jnp.float32)
  options = {'num_components': num_components, 'covariance': covariance}
  state = gmm.start(key, x, init='random', reg=_REG, **options)
  params, reg = gmm.best(state).params, _REG * float(state.frame.scale) ** 2

  def run():
    ended, _ = gmm.run(state, x, max_steps=num_steps, tol=-1.0, reg=_REG)
    jax.block_until_ready(ended)
    return lambda: float(gmm.best(ended).log_likelihood)

  # Products of D numbers for a point and a component, in half a step.
  products = {'full': dim, 'tied': 1, 'diag': 2, 'spherical': 1}[covariance]
  return Contest(
    f'EM, {covariance}, {len(x):,} x {dim}, k = {num_components}, a step',
    {
      OURS: Task(run, num_steps),
      **peers.tasks('em', x, params, reg, num_steps),
    },
    tolerance=1e-3,
    operations=4 * x.size * num_components * products,
    numbers=x.size,
  )

"""Contests of k-means over the size of the data, on generated points.

Points `[N, D]` lie about K centers, normally distributed, and fits start from K
of the points.

Axes: N points, D features, K clusters.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks
from jaxclust.algorithms import kmeans
from jaxclust.algorithms.seeding import SEEDINGS
from jaxclust.benchmark import clusters, peers
from jaxclust.benchmark.contest import OURS, Contest, Task

# Points that are generated at once.
_PART = 2**17

# Root mean square distance of two centers, in standard deviations of the points
# about a center, along a line.
_DISTANCE = 8.0


def plan_scaling(
  image_shape: Sequence[int],
  *,
  points: Sequence[tuple[int, int]],
  num_clusters: Sequence[int],
  num_steps: int,
  batches: Sequence[tuple[int, int, int]],
  batch_size: int,
  seedings: Sequence[tuple[str, int, int, int]],
) -> list[Callable]:
  """Seedings of k-means, fits on mini-batches, and fits.

  Args:
    image_shape: of images, which no contest sees.
    points: (N, D) of each array that is fitted.
    num_clusters: each K of such a fit.
    num_steps: of a fit.
    batches: (N, D, K) of each fit on as many mini-batches as N rows fill.
    batch_size: rows of a mini-batch.
    seedings: (init, N, D, K) of each.
  """
  del image_shape
  checks.check_count('num_steps', num_steps)
  checks.check_count('batch_size', batch_size)
  fits = [(*shape, k) for shape in points for k in num_clusters]
  for shape in (*fits, *batches, *(shape for _, *shape in seedings)):
    _check_shape(*shape)
  for init, *_ in seedings:
    checks.check_choice('each init of seedings', init, SEEDINGS)
  for num_points, *_ in batches:
    checks.check_groups('batch_size', batch_size, num_points)
  return [
    *(functools.partial(_seed, *seeding) for seeding in seedings),
    *(functools.partial(_fit_batches, *shape, batch_size) for shape in batches),
    *(functools.partial(_fit, *shape, num_steps) for shape in fits),
  ]


def _check_shape(num_points, num_features, num_clusters):
  for size in (num_points, num_features):
    checks.check_count('each size of points', size)
  checks.check_groups('each of num_clusters', num_clusters, num_points)


def make_points(
  seed: int, num_points: int, num_features: int, num_clusters: int
) -> tuple[np.ndarray, np.ndarray]:
  """Points `[N, D]` float32, and K of them to start from `[K, D]`."""
  rng = np.random.default_rng(seed)
  draw = functools.partial(rng.standard_normal, dtype=np.float32)
  centers = draw((num_clusters, num_features))
  centers *= np.float32(_DISTANCE / np.sqrt(2 * num_features))
  x = np.empty((num_points, num_features), np.float32)
  for part in np.split(x, range(_PART, num_points, _PART)):
    part[:] = draw(part.shape)
    part += centers[rng.integers(num_clusters, size=len(part))]
  starts = x[rng.choice(num_points, num_clusters, replace=False)]
  return x, starts


def _points(key, *shape):
  x, starts = make_points(int(jax.random.bits(key)), *shape)
  return jnp.asarray(x), starts


def _fit(num_points, num_features, num_clusters, num_steps, key, images):
  del images
  x, starts = _points(key, num_points, num_features, num_clusters)
  contest = clusters.lloyd(
    *('lloyd', key, x, starts[None], f'{num_steps} steps'),
    tolerance=1e-2,  # each library moves clusters that empty in its own way
    max_steps=num_steps,
    tol=0.0,
  )
  size = {'points': num_points, 'features': num_features}
  return contest._replace(size=size | {'clusters': num_clusters})


def _fit_batches(
  num_points, num_features, num_clusters, batch_size, key, images
):
  """Starts are the same; each library draws its own mini-batches."""
  del images
  x, _ = _points(key, num_points, num_features, num_clusters)
  starts = clusters.seed(key, x, 'k-means||', num_clusters, 1)[0]
  options = {'num_clusters': num_clusters, 'init': starts}
  options |= {'batch_size': batch_size, 'num_batches': len(x) // batch_size}

  def fit():
    inertia = float(kmeans.fit_minibatch(key, x, **options).inertia)
    return lambda: inertia

  return Contest(
    f'{clusters.name("k-means", x, num_clusters)}, batches of {batch_size:,}',
    {OURS: Task(fit), **peers.tasks('minibatch', x, starts, batch_size)},
    tolerance=0.02,  # draws differ
    operations=4 * x.size * num_clusters,
    numbers=2 * x.size,
  )


def _seed(init, num_points, num_features, num_clusters, key, images):
  del images
  x, _ = _points(key, num_points, num_features, num_clusters)
  return clusters.seeding(key, x, init, num_clusters, 1)

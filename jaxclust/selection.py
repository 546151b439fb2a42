"""Choosing the number of clusters: six criteria over a range of K.

  inertia     of k-means; chosen where the curve bends most (its elbow)
  silhouette  of the same clusters, over all pairs of points; the largest
  stability   mean adjusted Rand index between its restarts; the largest
  strength    of predictions: the share of the pairs of points of a cluster that
              the clusters of other points have together too, least of all
              clusters; the largest K with 0.8 or more, or none
  bic, aic    of a mixture; the least

Axes: N points, D features, K clusters, R restarts, S clusterings, C clusters of
all of these together, T rows of a tile.

References:
  Rousseeuw (1987), Silhouettes, https://doi.org/10.1016/0377-0427(87)90125-7
  Schwarz (1978), Estimating the dimension of a model,
    https://doi.org/10.1214/aos/1176344136
  Tibshirani and Walther (2005), Cluster validation by prediction strength,
    https://doi.org/10.1198/106186005X59243
  Satopaa et al. (2011), Finding a "kneedle" in a haystack,
    https://doi.org/10.1109/ICDCSW.2011.20
"""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics
from jax import lax
from jax.ops import segment_min, segment_sum

from jaxclust import checks, metrics
from jaxclust.algorithms import gmm, kmeans
from jaxclust.algorithms.distances import squared_distances
from jaxclust.errors import InputError
from jaxclust.frames import dot
from jaxclust.inputs import describe, on_any_mesh, place
from jaxclust.programs import compiled
from jaxclust.rows import block_rows, reduce_rows, take_rows

# Least rows on one side of a tile of distances.
_SIDE = 1024

# Number of times that points are halved, and the strength of predictions that
# Tibshirani and Walther ask of clusters.
_HALVINGS, _STRONG = 3, 0.8


def check_options(
  num_points: int,
  num_features: int,
  *,
  num_clusters: Sequence[int],
  num_restarts: int,
  covariance: str,
  reg: float,
) -> None:
  """Raises an InputError if options of `sweep` do not fit the shape of x."""
  if not num_clusters or len(set(num_clusters)) < len(num_clusters):
    raise InputError(
      f'num_clusters is {tuple(num_clusters)}: it must be different numbers, '
      'one at least'
    )
  checks.check_count('num_restarts', num_restarts, low=2)
  shape = num_points, num_features
  for count in num_clusters:
    if count > max(1, num_points // 2):
      raise InputError(
        f'num_clusters has {count}: it must be at most {num_points // 2}, half '
        'of the points, which are clustered alone too'
      )
    kmeans.check(*shape, num_clusters=count)
    gmm.check(*shape, num_components=count, covariance=covariance, reg=reg)


def sweep(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: Sequence[int],
  num_restarts: int = 10,
  covariance: str = 'full',
  reg: float = 1e-6,
) -> Iterator[dict]:
  """Clusters points into each number of clusters, and computes the criteria.

  Args:
    key: a JAX random key; each K draws from `fold_in(key, K)`, the halves of
      the points are drawn from `fold_in(key, 0)`.
    x: `[N, D]` points, of which halves are copied on the host.
    num_clusters: the values of K.
    num_restarts: R of k-means, at least 2.
    covariance: family of the mixtures.
    reg: their ridge.

  Yields:
    For each K a record of 'num_clusters', 'inertia', 'stability', 'strength',
    'bic', 'aic' and 'labels' `[N]` of the best k-means. Stability and strength
    are None for one cluster.

  Raises:
    InputError: for input that cannot be clustered.
  """
  checks.check_key(key)
  x = checks.as_real('x', x)
  checks.check_shape(x)
  mixtures = {'covariance': covariance, 'reg': reg}
  check_options(
    *x.shape, num_clusters=num_clusters, num_restarts=num_restarts, **mixtures
  )
  halves = jax.random.fold_in(key, 0)
  for count in num_clusters:
    key_of_k = jax.random.fold_in(key, count)
    state = _cluster(key_of_k, x, count, num_restarts)
    centers = kmeans.centers_of_runs(state)
    labels = [kmeans.predict(one, x) for one in centers]
    result = kmeans.best(state)
    params = gmm.fit(key_of_k, x, num_components=count, **mixtures).params
    yield {
      'num_clusters': count,
      'inertia': float(result.inertia),
      'stability': stability(labels) if count > 1 else None,
      'strength': _strength(halves, x, count, num_restarts)
      if count > 1
      else None,
      'bic': float(gmm.bic(params, x)),
      'aic': float(gmm.aic(params, x)),
      'labels': kmeans.predict(result.centers, x),
    }


def stability(labelings: Sequence[np.ndarray]) -> float:
  """Mean adjusted Rand index between all pairs of labelings `[N]`.

  >>> stability([[0, 0, 1], [1, 1, 0]])
  1.0
  """
  pairs = itertools.combinations(labelings, 2)
  return float(
    np.mean([sklearn.metrics.adjusted_rand_score(a, b) for a, b in pairs])
  )


def _strength(key, x, num_clusters, num_restarts):
  """The mean strength of predictions over random halves of points `[N, D]`."""
  x, size, found = np.asarray(x), len(x) // 2, []
  for number in range(_HALVINGS):
    own = jax.random.fold_in(key, number)
    order = np.asarray(jax.random.permutation(own, len(x)))
    halves = [x[np.sort(rows)] for rows in (order[:size], order[-size:])]
    states = [
      _cluster(jax.random.fold_in(own, i), half, num_clusters, num_restarts)
      for i, half in enumerate(halves)
    ]
    centers = [kmeans.best(state).centers for state in states]
    for i, half in enumerate(halves):
      labels, predicted = (
        np.asarray(kmeans.predict(centers[j], half)) for j in (i, 1 - i)
      )
      found.append(prediction_strength(labels, predicted, num_clusters))
  return float(np.mean(found))


def _cluster(key, x, num_clusters, num_restarts):
  """k-means of points `[N, D]` as `kmeans.run` leaves it, which never warns."""
  state = kmeans.start(
    key, x, num_clusters=num_clusters, num_restarts=num_restarts
  )
  return kmeans.run(state, x)[0]


def prediction_strength(
  labels: np.ndarray, predicted: np.ndarray, num_clusters: int
) -> float:
  """The share of a cluster's pairs of points that are predicted to be in one
  cluster, of the cluster where it is least.

  >>> prediction_strength([0, 0, 0, 1, 1], [1, 1, 0, 0, 0], 2)
  0.3333333333333333

  Args:
    labels: `[N]`, from 0 to K - 1.
    predicted: `[N]`, by centers that were found in other points.
    num_clusters: K. A cluster of fewer than two points is not predicted at all.
  """
  counts = metrics.confusion(labels, predicted, num_clusters)
  if len(counts) < num_clusters:
    return 0.0
  sizes = counts.sum(axis=1)
  together = (counts * (counts - 1)).sum(axis=1)
  return float((together / np.maximum(sizes * (sizes - 1), 1)).min())


@on_any_mesh
def silhouette(
  x: jax.Array,
  labels: jax.Array,
  num_clusters: Sequence[int],
  *,
  block_size: int | None = None,
) -> jax.Array:
  """Mean silhouettes `[S]` of S clusterings of the same points, exactly.

  Distances between all pairs are computed in tiles, once for all clusterings.
  Memory beyond x is a tile. A point alone in its cluster counts 0.

  >>> x = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
  >>> f'{silhouette(x, [[0, 0, 1, 1]], [2])[0]:.3f}'
  '0.900'

  Args:
    x: `[N, D]` points.
    labels: `[S, N]` int32, from 0 to K - 1.
    num_clusters: K of each clustering.
    block_size: rows on either side of a tile, chosen by size if None.

  Returns:
    `[S]`; NaN where all points are in one cluster.

  Raises:
    InputError: if shapes do not fit, x is not finite, or a label is out of
      range.
  """
  rows = describe(place(x, block_size=block_size))
  labels = labels if checks.is_traced(labels) else np.asarray(labels)
  _check_labels(labels, rows.shape[0] - rows.num_padded, num_clusters)
  clustering = np.repeat(np.arange(len(num_clusters)), num_clusters)
  number = np.concatenate([np.arange(count) for count in num_clusters])
  labels = labels.T.astype(np.int32)
  if rows.num_padded:
    labels = jnp.pad(labels, ((0, rows.num_padded), (0, 0)))
  return _silhouette(rows, labels, clustering, number)


def _check_labels(labels, num_points, num_clusters):
  expected = len(num_clusters), num_points
  if labels.shape != expected:
    raise InputError(
      f'labels have shape {labels.shape}: it must be {list(expected)}, a row '
      'for each of num_clusters'
    )
  if checks.is_traced(labels):
    return
  for row, count in zip(np.asarray(labels), num_clusters, strict=True):
    if row.min() < 0 or row.max() >= count:
      raise InputError(
        f'labels go from {row.min()} to {row.max()}: with {count} clusters '
        f'they must be from 0 to {count - 1}'
      )


@compiled
def _silhouette(rows, labels, clustering, number):
  """`silhouette` of labels `[N, S]`.

  Clusters of all clusterings stand in a line of C: `clustering` `[C]` says
  which one a cluster is of, and `number` `[C]` its label there.
  """
  num_points = rows.shape[0]
  tile = block_rows(num_points, _SIDE, rows.block_size)

  def sum_scores(start):
    index = start + jnp.arange(tile)
    fresh, index = index < num_points, jnp.minimum(index, num_points - 1)
    x = rows.frame.apply(take_rows(rows, index))
    totals, sizes = reduce_rows(
      _sum_distances, (x, clustering, number), rows, labels, width=tile
    )
    own = labels[index].T[clustering] == number[:, None]
    scores = _scores_of_rows(totals, own, sizes, clustering, labels.shape[1])
    return dot(scores, jnp.where(fresh, rows.weight[index], 0))

  starts = jnp.arange(0, num_points, tile)
  if rows.is_streamed:
    sums = jnp.stack([sum_scores(start) for start in starts])
  else:
    sums = lax.map(sum_scores, starts)
  return sums.sum(axis=0) / rows.weight.sum()


def _sum_distances(params, x, weight, labels):
  """Sums `[C, T]` of distances of T rows from each cluster, and its size."""
  some, clustering, number = params
  inside = labels.T[clustering] == number[:, None]
  inside = jnp.where(inside, weight[None], 0)
  totals = dot(inside, jnp.sqrt(squared_distances(x, some)).T)
  return totals, inside.sum(axis=1)


def _scores_of_rows(totals, own, sizes, clustering, num_clusterings):
  """Silhouettes `[S, T]` from summed distances to clusters `[C, T]`."""
  sizes = jnp.broadcast_to(sizes[:, None], totals.shape)

  def of_own(values):
    return segment_sum(jnp.where(own, values, 0), clustering, num_clusterings)

  size = of_own(sizes)
  within = of_own(totals) / jnp.maximum(size - 1, 1)
  means = jnp.where(own | (sizes == 0), jnp.inf, totals / sizes)
  nearest = segment_min(means, clustering, num_clusterings)
  largest = jnp.maximum(within, nearest)
  score = (nearest - within) / jnp.where(largest > 0, largest, 1)
  return jnp.where(size > 1, score, 0)


def choose(records: Sequence[dict]) -> dict[str, int | None]:
  """The K that each criterion prefers; None where it prefers none.

  Records have 'num_clusters' and the criteria, which may be None or NaN.
  """
  records = sorted(records, key=lambda record: record['num_clusters'])
  return {name: _choose_by(name, records) for name in CRITERIA}


def conclusion(records: Sequence[dict]) -> str:
  """How many clusters the points hold, as far as the numbers tried tell: the
  choice by strength, and what other criteria of k-means choose."""
  known = [r for r in records if r['strength'] is not None]
  if not known:
    return 'a number above 1 must be tried to tell how many clusters there are'
  choices = choose(records)
  count = choices['strength']
  beside = ', '.join(
    f'{name} {choices[name] or "none"}'
    for name in ('inertia', 'silhouette', 'stability')
  )
  best = max(known, key=lambda record: record['strength'])
  if count is None:
    return (
      'clusters of one half of the points are not found in the other: of the '
      f'numbers tried, {best["num_clusters"]} is the strongest, by '
      f'{best["strength"]:.2f} of {_STRONG}; the points do not tell how many '
      f'there are ({beside})'
    )
  (own,) = (r['strength'] for r in known if r['num_clusters'] == count)
  return (
    f'{count} clusters, the most of the numbers tried that both halves of the '
    f'points agree upon, by {own:.2f} of {_STRONG} ({beside})'
  )


def _choose_by(criterion, records):
  counts = np.asarray([record['num_clusters'] for record in records])
  values = np.asarray([record[criterion] for record in records], float)
  known = np.isfinite(values)  # NumPy reads None as NaN
  if not known.any():
    return None
  counts = counts[known]
  merits = CRITERIA[criterion](counts, values[known])
  best = merits.argmax()
  return int(counts[best]) if merits[best] > -np.inf else None


def _if_strong(counts, values):
  """Numbers whose clusters are found again, the larger the better."""
  return np.where(values >= _STRONG, counts, -np.inf)


def _depth_of_bend(counts, values):
  """How far a curve lies below the line between its ends; -inf above it."""
  depth = np.interp(counts, counts[[0, -1]], values[[0, -1]]) - values
  return np.where(depth > 0, depth, -np.inf)


# Criterion -> (counts, values) -> merits, of which the largest is chosen.
CRITERIA = {
  'inertia': _depth_of_bend,
  'silhouette': lambda counts, values: values,
  'stability': lambda counts, values: values,
  'strength': _if_strong,
  'bic': lambda counts, values: -values,
  'aic': lambda counts, values: -values,
}

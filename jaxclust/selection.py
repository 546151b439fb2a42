"""Choosing the number of clusters: what five criteria say of a range of K.

  inertia     of k-means; chosen where the curve bends most (its elbow)
  silhouette  of the same clusters, over all pairs of points; the largest
  stability   mean adjusted Rand index between its restarts; the largest
  bic, aic    of a mixture; the least

Axes: N points, D features, K clusters, R restarts, S clusterings, B rows.

References:
  Rousseeuw (1987), Silhouettes, https://doi.org/10.1016/0377-0427(87)90125-7
  Schwarz (1978), Estimating the dimension of a model,
    https://doi.org/10.1214/aos/1176344136
  Satopaa et al. (2011), Finding a "kneedle" in a haystack,
    https://doi.org/10.1109/ICDCSW.2011.20
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics

from jaxclust import gmm, kmeans, numerics
from jaxclust.numerics import InputError

CRITERIA = ('inertia', 'silhouette', 'stability', 'bic', 'aic')

# Rows of a tile of distances: of 4 MiB on a CPU.
_CPU_TILE, _ACCELERATOR_TILE = 1024, 8192


def check_options(
  num_points: int,
  num_features: int,
  *,
  num_clusters: Sequence[int],
  num_restarts: int,
  covariance: str,
  reg: float,
) -> None:
  """Checks the options of `sweep` against the shape of x.

  Raises:
    InputError: if they do not fit.
  """
  if not num_clusters or len(set(num_clusters)) < len(num_clusters):
    raise InputError(
      f'num_clusters is {tuple(num_clusters)}: it must be different numbers, '
      'one at least'
    )
  numerics.check_count('num_restarts', num_restarts, low=2)
  for count in num_clusters:
    kmeans.check_start(num_points, num_features, num_clusters=count)
    gmm.check_start(
      num_points,
      num_features,
      num_components=count,
      covariance=covariance,
      reg=reg,
    )


def sweep(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: Sequence[int],
  num_restarts: int = 10,
  covariance: str = 'full',
  reg: float = 1e-6,
) -> Iterator[dict]:
  """Clusters points into each number of clusters and tells the criteria.

  Args:
    key: a JAX random key; each K draws from `fold_in(key, K)`.
    x: `[N, D]` points.
    num_clusters: the values of K.
    num_restarts: R of k-means, at least 2.
    covariance: family of the mixtures.
    reg: their ridge.

  Yields:
    For each K a record of 'num_clusters', 'inertia', 'stability', 'bic', 'aic'
    and 'labels' `[N]` of the best k-means. Stability is None for one cluster.

  Raises:
    InputError: for input that cannot be clustered.
  """
  x, _ = numerics.check_points(x)
  check_options(
    *x.shape,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    covariance=covariance,
    reg=reg,
  )
  for count in num_clusters:
    key_of_count = jax.random.fold_in(key, count)
    state = kmeans.start(
      key_of_count, x, num_clusters=count, num_restarts=num_restarts
    )
    state, _ = kmeans.run(state, x)
    result = kmeans.best(state)
    labels = [
      np.asarray(kmeans.predict(state.frame.leave(centers), x))
      for centers in state.centers
    ]
    mixture = gmm.fit(
      key_of_count, x, num_components=count, covariance=covariance, reg=reg
    )
    yield {
      'num_clusters': count,
      'inertia': float(result.inertia),
      'stability': stability(labels) if count > 1 else None,
      'bic': float(gmm.bic(mixture.params, x)),
      'aic': float(gmm.aic(mixture.params, x)),
      'labels': kmeans.predict(result.centers, x),
    }


def stability(labelings: Sequence[np.ndarray]) -> float:
  """Mean adjusted Rand index between all pairs of labelings `[N]`."""
  pairs = itertools.combinations(labelings, 2)
  return float(
    np.mean([sklearn.metrics.adjusted_rand_score(a, b) for a, b in pairs])
  )


def silhouette(
  x: jax.Array, labels: jax.Array, num_clusters: Sequence[int]
) -> jax.Array:
  """Mean silhouettes `[S]` of S clusterings of the same points, exactly.

  Distances between all pairs are found tile by tile, once for all clusterings;
  memory beyond x is a tile, and N numbers for each cluster. A point alone in
  its cluster counts 0.

  Args:
    x: `[N, D]` points.
    labels: `[S, N]` int32, from 0 to K - 1.
    num_clusters: K of each clustering.

  Returns:
    `[S]`; NaN where all points are in one cluster.

  Raises:
    InputError: if shapes do not fit, x is not finite, or a label is out of
      range.
  """
  x, _ = numerics.check_points(x)
  labels = jnp.asarray(labels)
  if labels.shape != (len(num_clusters), len(x)):
    raise InputError(
      f'labels have shape {labels.shape}: it must be '
      f'[{len(num_clusters)}, {len(x)}], a row for each of num_clusters'
    )
  _check_labels(labels, num_clusters)
  return _silhouette(x, labels.T, tuple(num_clusters))


def _check_labels(labels, num_clusters):
  if isinstance(labels, jax.core.Tracer):
    return
  for row, count in zip(np.asarray(labels), num_clusters, strict=True):
    if row.min() < 0 or row.max() >= count:
      raise InputError(
        f'labels go from {row.min()} to {row.max()}: of {count} clusters they '
        f'must be from 0 to {count - 1}'
      )


@functools.partial(jax.jit, static_argnames='num_clusters')
def _silhouette(x, labels, num_clusters):
  """`silhouette` of labels `[N, S]`."""
  num_points = x.shape[0]
  on_cpu = jax.default_backend() == 'cpu'
  tile = min(num_points, _CPU_TILE if on_cpu else _ACCELERATOR_TILE)
  weight = jnp.ones(num_points, numerics.float_dtype(x))
  frame = numerics.find_frame(x, weight, tile)
  norms = numerics.squared_norms(x, frame, tile)

  def members(labels, fresh):
    """Clusters of rows `[B, S]`, one after another, `[sum K, B]`."""
    parts = [
      numerics.members(labels[:, s][None], count, weight.dtype)
      for s, count in enumerate(num_clusters)
    ]
    return jnp.where(fresh[None], jnp.concatenate(parts), 0)

  def count(total, block, fresh):
    return total + members(block, fresh).sum(axis=1), ()

  sizes = jnp.zeros(sum(num_clusters), weight.dtype)
  sizes, _ = numerics.scan_blocks(count, sizes, labels, tile)

  def of_rows(block):
    rows, norms_of_rows, labels_of_rows = block
    rows = frame.enter(rows)

    def distances(total, block, fresh):
      others, labels_of_others = block
      squared = numerics.squared_distances(
        rows, frame.enter(others), norms_of_rows
      )
      inside = members(labels_of_others, fresh)
      return total + numerics.dot(inside, jnp.sqrt(squared)), ()

    total = jnp.zeros((sizes.shape[0], rows.shape[0]), weight.dtype)
    total, _ = numerics.scan_blocks(distances, total, (x, labels), tile)
    own = members(labels_of_rows, jnp.ones(rows.shape[0], bool))
    return _scores_of_rows(total, own, sizes, num_clusters)

  scores = numerics.map_blocks(of_rows, (x, norms, labels), tile)
  return scores.mean(axis=0)


def _scores_of_rows(total, own, sizes, num_clusters):
  """Silhouettes `[B, S]` from summed distances to clusters `[sum K, B]`."""
  scores, begin = [], 0
  for count in num_clusters:
    part = slice(begin, begin + count)
    begin += count
    inside, size = own[part] > 0, sizes[part][:, None]
    size_of_own = jnp.where(inside, size, 0).sum(axis=0)
    within = jnp.where(inside, total[part], 0).sum(axis=0)
    within = within / jnp.maximum(size_of_own - 1, 1)
    mean = total[part] / jnp.maximum(size, 1)
    others = jnp.where(inside | (size == 0), jnp.inf, mean).min(axis=0)
    largest = jnp.maximum(within, others)
    score = (others - within) / jnp.where(largest > 0, largest, 1)
    scores.append(jnp.where(size_of_own > 1, score, 0))
  return jnp.stack(scores, axis=1)


def choose(records: Sequence[dict]) -> dict[str, int | None]:
  """The K that each criterion takes; None where it says nothing.

  Args:
    records: with 'num_clusters' and the criteria, in any order.
  """
  records = sorted(records, key=lambda record: record['num_clusters'])
  return {name: _choose_by(name, records) for name in CRITERIA}


def _choose_by(criterion, records):
  points = [
    (record['num_clusters'], record[criterion])
    for record in records
    if record[criterion] is not None and np.isfinite(record[criterion])
  ]
  if not points:
    return None
  counts, values = (np.asarray(v, float) for v in zip(*points, strict=True))
  if criterion == 'inertia':
    values = _below_chord(counts, values)
    if values.max() <= 0:
      return None
  best = np.argmin(values) if criterion in ('bic', 'aic') else np.argmax(values)
  return int(counts[best])


def _below_chord(counts, values):
  """How far a curve lies below the line between its ends."""
  if len(counts) < 3:
    return np.zeros(len(counts))
  return np.interp(counts, counts[[0, -1]], values[[0, -1]]) - values

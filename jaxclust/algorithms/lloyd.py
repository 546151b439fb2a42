"""Lloyd's algorithm as statistics and an update; see `kmeans` for its use.

Axes: B rows of a block, D features, K clusters, R runs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust.algorithms import solver, tiles
from jaxclust.algorithms.distances import (
  are_apart,
  nearest_centers,
  sums_by_label,
)
from jaxclust.algorithms.solver import Algorithm, Solution
from jaxclust.frames import dot
from jaxclust.inputs import padded_groups
from jaxclust.rows import Rows, map_rows, top_rows


class Clusters(NamedTuple):
  """The parameters of R runs, in a frame."""

  centers: jax.Array  # [R, K, D]
  active: jax.Array  # [R, K] bool, False for padding of K

  @property
  def num_features(self) -> int:
    return self.centers.shape[-1]


def pad(centers: Any, num_clusters: int, size: int) -> Clusters:
  """Centers `[R, K, D]`, in a frame, padded to `size` of them."""
  missing = size - centers.shape[1]
  if missing:
    centers = np.pad(np.asarray(centers), ((0, 0), (0, missing), (0, 0)))
  active = np.arange(size) < num_clusters
  return Clusters(centers, np.tile(active, (len(centers), 1)))


def blank(num_clusters: int, num_runs: int, rows: Rows) -> Clusters:
  """Clusters of the shapes that runs on rows will have."""
  centers = np.zeros((num_runs, num_clusters, rows.shape[1]), rows.dtype)
  return pad(centers, num_clusters, padded_groups(num_clusters, rows))


class Sums(NamedTuple):
  """What a step has to know of the points."""

  sums: jax.Array  # [R, K, D] weighted sums of each cluster's points
  counts: jax.Array  # [R, K] weights of each cluster's points; NaN: unknown
  inertia: jax.Array  # [R]


def before(params: Clusters, rows: Rows) -> Solution:
  """R runs before their first pass, which leaves the centers where they are."""
  unknown = jax.tree.map(
    lambda a: np.full(a.shape, np.nan, a.dtype),
    (params.centers, params.centers[..., 0], params.centers[:, 0, 0]),
  )
  return solver.before(params, Sums(*unknown), rows)


def assign(
  params: Clusters, x: jax.Array, precision: str = 'highest'
) -> tuple[jax.Array, jax.Array]:
  """Squared distances to the nearest centers, and their numbers, `[R, B]`."""
  return nearest_centers(x, params.centers, params.active, precision)


def _stats(
  params: Clusters, x: jax.Array, weight: jax.Array, precision: str = 'highest'
) -> Sums:
  least, labels = assign(params, x, precision)
  sum_up = functools.partial(sums_by_label, labels, params.centers.shape[1])
  weighted = x * weight[:, None]
  return Sums(sum_up(weighted), sum_up(weight), dot(least, weight))


def _update(params: Clusters, stats: Sums, frame: Any, reg: Any) -> Clusters:
  """Centers at the means of their points; those without points stay."""
  del reg
  occupied = (stats.counts > 0)[..., None]
  means = stats.sums / jnp.where(occupied, stats.counts[..., None], 1)
  centers = jnp.where(occupied, frame.project(means), params.centers)
  return params._replace(centers=centers)


def _change(old: Solution, new: Solution) -> jax.Array:
  """The squared shift of all centers; inf while an empty cluster may move.

  An empty cluster is final only where no point is left for it.
  """
  difference = new.params.centers - old.params.centers
  was_empty = old.stats.counts <= 0
  stayed = jnp.all(difference == 0, axis=2)
  settled = (new.stats.counts > 0) | ~new.params.active | (was_empty & stayed)
  shift = jnp.square(difference).sum(axis=(1, 2))
  return jnp.where(jnp.all(settled, axis=1), shift, shift + jnp.inf)


def _fill_empty(params: Clusters, stats: Sums, rows: Rows) -> Clusters:
  """Moves centers without points to the points farthest from all centers."""
  empty = (stats.counts <= 0) & params.active

  def relocate():
    least = map_rows(_least, params, rows, width=params.active.size)
    count = min(empty.shape[1], rows.shape[0])  # a mini-batch may have fewer
    farthest, x = top_rows(_distance, (), rows, least, count=count)
    rank = jnp.clip(jnp.cumsum(empty, axis=1) - 1, 0, count - 1)
    farthest = jnp.take_along_axis(farthest, rank, axis=1)
    x = jnp.take_along_axis(x, rank[..., None], axis=1)
    # The mean of equal rows is as far from them as its rounding.
    apart = are_apart(farthest, jnp.square(x).sum(axis=-1))
    moves = (empty & apart)[..., None]
    return params._replace(centers=jnp.where(moves, x, params.centers))

  if rows.is_streamed:
    return relocate() if empty.any() else params
  return lax.cond(empty.any(), relocate, lambda: params)


def _least(params, x):
  return assign(params, x)[0].T


def _distance(params, weight, least):
  del params
  return jnp.where(weight[None] > 0, least.T, 0)


def _width(params):
  """Numbers that the distances of a row take; of each run, tiles leave two."""
  has_tiles = tiles.available(params.centers.dtype)
  return 2 * len(params.active) if has_tiles else params.active.size


LLOYD = Algorithm(
  stats=_stats,
  update=_update,
  objective=lambda stats: stats.inertia,
  change=_change,
  width=_width,
  mend=_fill_empty,
  together=True,
)

# The same with distances in TF32, on a device that has it.
LLOYD_IN_TF32 = LLOYD._replace(
  stats=functools.partial(_stats, precision='tf32')
)

"""Lloyd's algorithm with less work and the same result, for large arrays.

A point keeps its label without being looked at while an upper bound of the
distance to its center is below a lower bound of that to any other; bounds move
with the centers, by the triangle inequality. Sums are those of the step before,
corrected by the rows that changed cluster. After a few steps most rows stay.

A few centers that still move far loosen the lower bounds of all rows. Among
many centers, a row whose bounds hold but for the fastest eighth of them is
compared with its own center and with those first.

Axes: N points, D features, K clusters, B rows of a block; one run.

References:
  Hamerly (2010), Making k-means even faster,
    https://doi.org/10.1137/1.9781611972801.12
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms.distances import (
  nearest,
  squared_distances,
  sums_by_label,
)
from jaxclust.algorithms.lloyd import LLOYD, Clusters, Sums
from jaxclust.frames import dot
from jaxclust.rows import Rows, block_rows, on_each_device, reduce_rows

# Drift of sums by rounding, in mean distances of points from their centers,
# above which the sums are made anew.
_DRIFT = 1e-5

# Share of the sum of all squares below which an inertia is not taken from a
# difference of sums.
_CANCELS = 1e-2

# Least number of centers of which the fastest come first.
_MANY = 64

# Number of centers for each one that counts as fast.
_PER_FAST = 8


class Bounds(NamedTuple):
  """What a pass leaves for the next one."""

  centers: jax.Array  # [K, D] of the pass
  labels: jax.Array  # [N] int32, -1 before the first pass
  upper: jax.Array  # [N] of the distance to the center of the label
  lower: jax.Array  # [N] of that to any other center
  sums: jax.Array  # [K, D] of the rows with each label
  counts: jax.Array  # [K]
  moved: jax.Array  # [K] lengths of the rows by which sums were corrected
  squares: jax.Array  # [] weighted sum of |x|^2


def begin(params: Clusters, rows: Rows) -> Bounds:
  """Bounds that say nothing yet."""
  _, num_clusters, num_features = params.centers.shape
  column = jnp.zeros_like(rows.weight)
  none = jnp.zeros(num_clusters, column.dtype)
  return Bounds(
    centers=params.centers[0],
    labels=jnp.full_like(column, -1, jnp.int32),
    upper=jnp.full_like(column, jnp.inf),
    lower=column,
    sums=jnp.zeros((num_clusters, num_features), column.dtype),
    counts=none,
    moved=none,
    squares=reduce_rows(_square, (), rows),
  )


def sweep(params: Clusters, memory: Bounds, rows: Rows) -> tuple[Sums, Bounds]:
  """The statistics of `lloyd`, and the new bounds."""
  centers, active = params.centers[0], params.active[0]
  drift = jnp.sqrt(jnp.square(centers - memory.centers).sum(axis=1))
  columns = memory.labels, memory.upper, memory.lower
  change, columns = on_each_device(
    _relabel, (centers, active, drift), rows, columns
  )
  sums, counts, lengths, spread = change
  is_first = memory.counts.sum() == 0
  sums, counts = memory.sums + sums, memory.counts + counts
  moved = jnp.where(is_first, 0, memory.moved + lengths)
  distance = jnp.sqrt(spread / rows.weight.sum())
  drifted = jnp.finfo(sums.dtype).eps * moved > _DRIFT * distance * counts
  lengths = jnp.square(centers).sum(axis=1)
  cross = (centers * sums).sum(axis=1)
  inertia = memory.squares + (counts * lengths - 2 * cross).sum()
  cancels = inertia < _CANCELS * memory.squares

  def sum_anew():
    found = reduce_rows(_sum_labels, centers, rows, columns[0])
    return *found, jnp.zeros_like(moved)

  sums, counts, inertia, moved = lax.cond(
    jnp.any(drifted) | cancels,
    sum_anew,
    lambda: (sums, counts, inertia, moved),
  )
  memory = Bounds(centers, *columns, sums, counts, moved, memory.squares)
  return Sums(sums[None], counts[None], inertia[None]), memory


def _square(params, x, weight):
  del params
  return dot(weight, jnp.square(x).sum(axis=1))


def _relabel(params, rows, columns):
  """Labels the open rows of a device anew.

  Returns changes of sums, counts and lengths, and the weighted sum of the
  squared upper bounds; and the new labels and bounds.
  """
  centers, active, drift = params
  upper, lower = _loosen(drift, *columns)
  total = jax.tree.map(jnp.zeros_like, (centers, drift, drift))
  carry = (columns[0], upper, lower), total

  def is_open(columns):
    return ~(columns[1] < columns[2]) & (rows.weight > 0)

  if len(centers) >= _MANY:
    count = len(centers) // _PER_FAST
    falling, fast = lax.top_k(drift, count + 1)
    fast, lower_of_slow = fast[:count], _lessen(columns[2], falling[count])
    near = is_open(carry[0]) & (upper < lower_of_slow)
    find = _among_fast(centers, active, fast, lower_of_slow)
    carry = _label(find, carry, rows, near, len(fast))
  find = _among_all(centers, active)
  columns, total = _label(find, carry, rows, is_open(carry[0]), len(centers))
  bounds = jnp.where(rows.weight > 0, columns[1], 0)
  return (*total, dot(rows.weight, jnp.square(bounds))), columns


def _sum_labels(centers, x, weight, labels):
  """Sums `[K, D]`, counts `[K]` and inertia `[]` of rows with labels."""
  sum_up = functools.partial(sums_by_label, labels[None], len(centers))
  squared = jnp.square(x - centers[labels]).sum(axis=1)
  weighted = x * weight[:, None]
  return sum_up(weighted)[0], sum_up(weight)[0], dot(weight, squared)


def _loosen(drift, labels, upper, lower):
  """The bounds, now that centers have moved by `drift` `[K]`."""
  eps = jnp.finfo(drift.dtype).eps
  number = lax.iota(jnp.int32, len(drift))
  is_largest = number == jnp.argmax(drift)
  others = jnp.where(is_largest, 0, drift).max()
  others = jnp.where(is_largest, others, drift.max())
  place = jnp.maximum(labels, 0)
  upper = (upper + drift[place]) * (1 + 4 * eps)
  return upper, _lessen(lower, others[place])


def _lessen(lower, moved):
  """Lower bounds of distances to centers that have moved at most so far."""
  return (lower - moved) * (1 - 4 * jnp.finfo(lower.dtype).eps)


def _among_all(centers, active):
  """Finds labels of rows, and their bounds, among all centers."""
  longest = jnp.square(centers).sum(axis=1).max()

  def find(place, x, old):
    del place, old
    reduce = functools.partial(_two_nearest, None)
    least, second, labels = squared_distances(x, centers, active, reduce)
    return labels, *_bounds(x, longest, least, second)

  return find


def _among_fast(centers, active, fast, lower_of_slow):
  """Finds them among the own center and those that move fast, `[M]`.

  The lower bounds `[N]` are those of the distances to all others.
  """
  longest = jnp.square(centers).sum(axis=1).max()
  number = lax.iota(jnp.int32, len(fast))
  position = jnp.full_like(active, -1, jnp.int32).at[fast].set(number)

  def find(place, x, old):
    own = jnp.square(x - centers[old]).sum(axis=1)
    reduce = functools.partial(_two_nearest, position[old])
    least, second, which = squared_distances(
      x, centers[fast], active[fast], reduce
    )
    labels = jnp.where(own <= least, old, fast[which])
    second = jnp.minimum(second, jnp.maximum(own, least))
    upper, lower = _bounds(x, longest, jnp.minimum(own, least), second)
    others = lower_of_slow.at[place].get(mode='clip')
    return labels, upper, jnp.minimum(lower, others)

  return find


def _two_nearest(skip, part, rest):
  """The least distance of each row, the second, and the label of the least,
  of all but the centers to skip `[B]`."""
  number = lax.broadcasted_iota(jnp.int32, part.shape, 0)
  if skip is not None:
    part = jnp.where(number == skip[None], jnp.inf, part)
  least, labels = nearest(part[None], rest)
  others = jnp.where(number == labels, jnp.inf, part).min(axis=0)
  return least[0], jnp.maximum(others + rest, 0), labels[0]


def _bounds(x, longest, least, second):
  """Upper and lower bounds of distances whose squares are known but for their
  rounding."""
  norms = jnp.square(x).sum(axis=1)
  rounding = 8 * jnp.finfo(x.dtype).eps * (norms + longest)
  lower = jnp.sqrt(jnp.maximum(second - rounding, 0))
  return jnp.sqrt(least + rounding), lower


def _label(find, carry, rows, wanted, width):
  """Labels the wanted rows by `find(place, x, old) -> labels, upper, lower`.

  The carry is the columns, and the changes of sums, counts and lengths so far.
  """
  before = carry[0][0]

  def visit(carry, place, x, weight):
    columns, total = carry
    old = before.at[place].get(mode='clip')
    found = find(place, x, old)
    part = _sum_moves(old, found[0], x, weight, len(total[1]))
    columns = jax.tree.map(
      lambda a, b: a.at[place].set(b, mode='drop'), columns, found
    )
    return columns, jax.tree.map(jnp.add, total, part)

  return _visit(visit, carry, rows, wanted, width)


def _sum_moves(old, new, x, weight, num_clusters):
  """What rows that leave a cluster for another change: sums, counts, lengths.

  Lengths are added in both clusters.
  """
  moves = (old != new) & (weight > 0)
  lengths = jnp.sqrt(jnp.square(x).sum(axis=1))
  values = x * weight[:, None], weight, weight * lengths

  def of(labels):
    labels = jnp.where(moves, labels, -1)[None]
    return [sums_by_label(labels, num_clusters, v)[0] for v in values]

  joined, left = of(new), of(old)
  return joined[0] - left[0], joined[1] - left[1], joined[2] + left[2]


def _visit(
  fn: Callable, carry: Any, rows: Rows, wanted: jax.Array, width: int
) -> Any:
  """Walks over the wanted rows of a device, a block of them at a time.

  `fn(carry, place [B], x [B, D], weight [B])` returns the next carry; where the
  last block falls short, places are N and weights 0. Rows are wanted `[N]`, and
  take `width` numbers beside their D.
  """
  num_rows = rows.shape[0]
  size = block_rows(num_rows, rows.shape[1] + width, rows.block_size)
  rank = jnp.cumsum(wanted, dtype=jnp.int32)
  place = jnp.where(wanted, rank - 1, num_rows)
  number = lax.iota(jnp.int32, num_rows)
  places = jnp.zeros_like(number).at[place].set(number, mode='drop')

  def body(i, carry):
    start = jnp.minimum(i * size, num_rows - size)
    rank_here = start + lax.iota(jnp.int32, size)
    fresh = (rank_here >= i * size) & (rank_here < rank[-1])
    place = lax.dynamic_slice_in_dim(places, start, size)
    x = rows.in_frame(rows.x[place])
    weight = jnp.where(fresh, rows.weight[place], 0)
    return fn(carry, jnp.where(fresh, place, num_rows), x, weight)

  return lax.fori_loop(0, -(-rank[-1] // size), body, carry)


PRUNED = LLOYD._replace(begin=begin, sweep=sweep, together=False)

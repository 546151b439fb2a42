"""Squared distances by one matrix product, the nearest, and sums by label.

Axes: B rows, D features, K centers, R runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms import tiles
from jaxclust.frames import dot

# A distance is accurate to 1e-4 if it is at least this many roundings of |x|^2.
_TRUSTED_ROUNDINGS = 1e4

# Differences in all below which one small program is worth more than a product.
_FEW_NUMBERS = 2**21

# Share of the rows of a block that may have less accurate distances, and that
# may if they lie at a center, as the rows do that centers start from.
_FEW_ROWS, _SOME_ROWS = 1 / 64, 1 / 4

# Least rows that are added one after another, before their sums are.
_RUN = 1024


def _whole(part, rest):
  """Squared distances `[K, B]` from the parts that `reduce` is given."""
  return jnp.maximum(part + rest[None], 0)


def squared_distances(
  x: jax.Array,
  centers: jax.Array,
  active: jax.Array | None = None,
  reduce: Callable = _whole,
) -> Any:
  """Squared distances `[K, B]` of rows `[B, D]` from centers `[K, D]`.

  The product has an error of a rounding of `|x|^2`. Where this blurs the
  distance to the nearest center for more than a few rows, because points lie
  close together but far from the origin, differences are used instead.

  Distances are inf from centers that are not active `[K]`. Returns what
  `reduce(part [K, B], rest [B])` makes of all distances while they are in
  cache. They are `max(part + rest, 0)`: what only compares the distances of a
  row can do without the rest.
  """

  def by_differences(squares):
    if active is not None:
      squares = jnp.where(active[:, None], squares, jnp.inf)
    return reduce(squares, jnp.zeros_like(squares[0]))

  if _are_few(x, centers):
    difference = x[None] - centers[:, None]
    return by_differences(jnp.square(difference).sum(axis=2))
  norms, lengths = jnp.square(x).sum(axis=1), _lengths(centers, active)
  part = lengths[:, None] + dot(-2 * centers, x.T)
  found = reduce(part, norms)
  least, labels = nearest(part[None], norms)
  return lax.cond(
    _are_blurred(x, centers, least[0], labels[0], norms),
    lambda: by_differences(
      lax.map(lambda c: jnp.square(x - c[None]).sum(axis=1), centers)
    ),
    lambda: found,
  )


def nearest_centers(
  x: jax.Array,
  centers: jax.Array,
  active: jax.Array,
  precision: str = 'highest',
) -> tuple[jax.Array, jax.Array]:
  """Squared distances of rows `[B, D]` from the nearest centers, and their
  numbers, `[R, B]`, as of `squared_distances`.

  Args:
    x: `[B, D]`.
    centers: `[R, K, D]` of R runs.
    active: `[R, K]`.
    precision: of `tiles.PRECISIONS`, where the device has tiles; blurred
      distances stay so where it is not the highest.
  """
  num_runs, num_clusters, num_features = centers.shape
  flat = centers.reshape(-1, num_features)

  def of_each_run(part, rest):
    return nearest(part.reshape(num_runs, num_clusters, -1), rest)

  def plain(x, flat, active):
    return squared_distances(x, flat, active.reshape(-1), of_each_run)

  def tiled(x, flat, active):
    centers = flat.reshape(num_runs, num_clusters, num_features)
    return _nearest_by_tiles(x, centers, active, precision)

  if not tiles.usable(x) or _are_few(x, flat):
    return plain(x, flat, active)
  return tiles.on_cuda(tiled, plain, x, flat, active)


def _nearest_by_tiles(x, centers, active, precision):
  norms = jnp.square(x).sum(axis=1)
  lengths = _lengths(centers, active)
  part, labels = tiles.nearest(x, centers, lengths, precision)
  least = jnp.maximum(part + norms[None], 0)
  if precision != 'highest':
    return least, labels
  num_clusters, num_features = centers.shape[1:]
  run, row = lax.argmin(least, 0, jnp.int32), lax.iota(jnp.int32, len(x))
  number = run * num_clusters + labels[run, row]
  flat = centers.reshape(-1, num_features)
  return lax.cond(
    _are_blurred(x, flat, least[run, row], number, norms),
    lambda: _nearest_by_differences(x, centers, active),
    lambda: (least, labels),
  )


def _are_few(x, centers):
  """Whether differences of rows and centers `[K, D]` are few numbers."""
  known = isinstance(x.shape[0], int)  # it is a symbol in an export
  return known and x.size * len(centers) <= _FEW_NUMBERS


def _lengths(centers, active):
  """Squared lengths of centers `[..., D]`, inf for those not active."""
  lengths = jnp.square(centers).sum(axis=-1)
  return lengths if active is None else jnp.where(active, lengths, jnp.inf)


def _nearest_by_differences(x, centers, active):
  """Distances and numbers `[R, B]` of the nearest, a center at a time."""

  def look(k, best):
    difference = x[None] - centers[:, k, None]
    squares = jnp.square(difference).sum(axis=2)
    nearer = (squares < best[0]) & active[:, k, None]
    return (
      jnp.where(nearer, squares, best[0]),
      jnp.where(nearer, k, best[1]),
    )

  shape = len(centers), len(x)
  best = jnp.full(shape, jnp.inf, x.dtype), jnp.zeros(shape, jnp.int32)
  return lax.fori_loop(0, centers.shape[1], look, best)


def _are_blurred(x, centers, least, labels, norms):
  """Whether a product leaves too many rows without accurate distances."""
  rounding = jnp.finfo(least.dtype).eps * norms
  blurred = least < _TRUSTED_ROUNDINGS * rounding

  def look_closer():
    exact = jnp.square(x - centers[labels]).sum(axis=1)
    many = (blurred & are_apart(exact, norms)).mean() > _FEW_ROWS
    return many | (blurred.mean() > _SOME_ROWS)

  return lax.cond(blurred.mean() > _FEW_ROWS, look_closer, lambda: False)


def are_apart(squared: jax.Array, norms: jax.Array) -> jax.Array:
  """Whether points lie farther apart than by the rounding of points of squared
  length `norms`."""
  return squared > (64 * jnp.finfo(squared.dtype).eps) ** 2 * norms


def nearest(part: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The least of distances and its index, `[R, B]`; ties: the first.

  Distances are in parts `[R, K, B]` and `[B]`, as in `squared_distances`. Two
  plain minima of floats vectorise where XLA's argmin does not.
  """
  least = part.min(axis=1)
  last = part.shape[1] - 1
  number = lax.broadcasted_iota(part.dtype, part.shape, 1)
  found = jnp.where(part == least[:, None], number, last)
  labels = found.min(axis=1).astype(jnp.int32)
  return jnp.maximum(least + rest[None], 0), labels


def one_hot(labels: jax.Array, num_clusters: int, dtype: Any) -> jax.Array:
  """Labels `[R, B]` as rows `[R K, B]` of 0 and 1; -1 is in no cluster."""
  number = lax.iota(jnp.int32, num_clusters)[None, :, None]
  inside = labels[:, None] == number
  return inside.reshape(-1, labels.shape[1]).astype(dtype)


def sums_by_label(
  labels: jax.Array, num_clusters: int, values: jax.Array
) -> jax.Array:
  """Sums `[R, K, ...]` of the values `[B, ...]` of the rows with each label
  `[R, B]`; a row with a label outside of K is in no sum.

  An accelerator multiplies; a CPU adds each row to its sum.
  """
  num_runs, num_rows = labels.shape
  if jax.default_backend() != 'cpu':
    columns = values if values.ndim == 2 else values[:, None]

    def plain(labels, columns):
      sums = dot(one_hot(labels, num_clusters, columns.dtype), columns)
      return sums.reshape(num_runs, num_clusters, -1)

    def tiled(labels, columns):
      return tiles.sums(labels, num_clusters, columns)

    if tiles.usable(columns):
      sums = tiles.on_cuda(tiled, plain, labels, columns)
    else:
      sums = plain(labels, columns)
    return sums.reshape(num_runs, num_clusters, *values.shape[1:])
  # Sums of short runs of rows keep the digits that one long sum would lose.
  run = max(_RUN, 4 * num_clusters)
  part = lax.iota(jnp.int32, num_rows) // run
  shape = -(-num_rows // run), num_clusters, *values.shape[1:]

  def of_run(labels):
    labels = jnp.where(labels < 0, num_clusters, labels)
    sums = jnp.zeros(shape, values.dtype)
    return sums.at[part, labels].add(values, mode='drop').sum(axis=0)

  return jax.vmap(of_run)(labels)

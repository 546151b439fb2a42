"""Squared distances by one matrix product, and the nearest of them.

Axes: B rows, D features, K centers, R runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust.frames import dot

# A distance is accurate to 1e-4 if it is at least this many roundings of |x|^2.
_TRUSTED_ROUNDINGS = 1e4

# Differences in all below which one small program is worth more than a product.
_FEW_NUMBERS = 2**21

# Share of the rows of a block that may have less accurate distances.
_FEW_ROWS = 1 / 64


def squared_distances(
  x: jax.Array,
  centers: jax.Array,
  active: jax.Array | None = None,
  reduce: Callable = lambda squared: squared,
) -> Any:
  """Squared distances `[K, B]` of rows `[B, D]` from centers `[K, D]`.

  The product has an error of a rounding of `|x|^2`. Where this blurs the
  distance to the nearest center for more than a few rows, because points lie
  close together but far from the origin, differences are used instead.

  Args:
    x: rows in a frame.
    centers: in the same frame.
    active: `[K]` whether a center is in use; the distance of others is inf.
    reduce: what to make of the distances while they are in cache.

  Returns:
    `reduce` of the distances.
  """
  known = isinstance(x.shape[0], int)  # it is a symbol in an export
  if known and x.size * len(centers) <= _FEW_NUMBERS:
    difference = x[None] - centers[:, None]
    return reduce(_mask(jnp.square(difference).sum(axis=2), active))
  norms = jnp.square(x).sum(axis=1)
  lengths = jnp.square(centers).sum(axis=1)
  squared = norms[None] + (lengths[:, None] - 2 * dot(centers, x.T))
  squared = _mask(jnp.maximum(squared, 0), active)
  rounding = jnp.finfo(squared.dtype).eps * norms
  blurred = squared.min(axis=0) < _TRUSTED_ROUNDINGS * rounding

  def by_differences():
    exact = lax.map(lambda c: jnp.square(x - c[None]).sum(axis=1), centers)
    return reduce(_mask(exact, active))

  return lax.cond(
    blurred.mean() > _FEW_ROWS, by_differences, lambda: reduce(squared)
  )


def _mask(squared, active):
  return (
    squared if active is None else jnp.where(active[:, None], squared, jnp.inf)
  )


def nearest(squared: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The least of distances `[R, K, B]` and its index, `[R, B]`; ties: the
  first. Two plain minima vectorise where XLA's argmin does not."""
  least = squared.min(axis=1)
  last = squared.shape[1] - 1
  number = lax.broadcasted_iota(jnp.int32, squared.shape, 1)
  found = jnp.where(squared == least[:, None], number, last)
  return least, found.min(axis=1)


def one_hot(labels: jax.Array, num_clusters: int, dtype: Any) -> jax.Array:
  """Labels `[R, B]` as rows `[R K, B]` of 0 and 1; -1 is in no cluster."""
  number = lax.iota(jnp.int32, num_clusters)[None, :, None]
  inside = labels[:, None] == number
  return inside.reshape(-1, labels.shape[1]).astype(dtype)

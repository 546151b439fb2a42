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

  Distances are inf from centers that are not active `[K]`. Returns what
  `reduce` makes of all distances while they are in cache.
  """

  def masked(squared):
    if active is None:
      return squared
    return jnp.where(active[:, None], squared, jnp.inf)

  known = isinstance(x.shape[0], int)  # it is a symbol in an export
  if known and x.size * len(centers) <= _FEW_NUMBERS:
    difference = x[None] - centers[:, None]
    return reduce(masked(jnp.square(difference).sum(axis=2)))
  norms = jnp.square(x).sum(axis=1)
  lengths = jnp.square(centers).sum(axis=1)
  squared = norms[None] + (lengths[:, None] - 2 * dot(centers, x.T))
  squared = masked(jnp.maximum(squared, 0))
  rounding = jnp.finfo(squared.dtype).eps * norms
  blurred = squared.min(axis=0) < _TRUSTED_ROUNDINGS * rounding

  def by_differences():
    exact = lax.map(lambda c: jnp.square(x - c[None]).sum(axis=1), centers)
    return reduce(masked(exact))

  return lax.cond(
    blurred.mean() > _FEW_ROWS, by_differences, lambda: reduce(squared)
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

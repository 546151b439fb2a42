"""The nearest neighbours of points, exactly, by blocks of products.

Axes: N points, D features, n neighbours, B rows of a block.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust import checks
from jaxclust.frames import dot

# Maximum numbers in a block of distances.
_BLOCK = 2**24


@functools.partial(jax.jit, static_argnums=1)
def nearest(x: jax.Array, num_neighbors: int) -> tuple[jax.Array, jax.Array]:
  """The nearest other points of each point, the nearest first.

  >>> nearest(jnp.array([[0.0], [1.0], [3.0]]), 1)[0].ravel().tolist()
  [1, 0, 1]

  Args:
    x: `[N, D]` points.
    num_neighbors: n, below N.

  Returns:
    Their numbers `[N, n]` int32, and squared Euclidean distances `[N, n]`.

  Raises:
    InputError: if there are not so many others.
  """
  num_points = len(x)
  checks.check_count('num_neighbors', num_neighbors, high=num_points - 1)
  x = x - x.mean(axis=0)[None]
  norms = jnp.square(x).sum(axis=1)
  size = max(1, min(num_points, _BLOCK // num_points))
  num_blocks = -(-num_points // size)

  def of_block(start):
    start = jnp.minimum(start, num_points - size)  # the last ones overlap
    own = lax.dynamic_slice_in_dim(x, start, size)
    closeness = 2 * dot(own, x.T) - norms[None]
    rows = jnp.arange(size)
    closeness = closeness.at[rows, start + rows].set(-jnp.inf)
    best, numbers = lax.top_k(closeness, num_neighbors)
    length = lax.dynamic_slice_in_dim(norms, start, size)[:, None]
    return start, numbers, jnp.maximum(length - best, 0)

  starts, numbers, squared = lax.map(of_block, size * jnp.arange(num_blocks))
  places = (starts[:, None] + jnp.arange(size)[None]).reshape(-1)
  found = jnp.zeros((num_points, num_neighbors), jnp.int32)
  found = found.at[places].set(numbers.reshape(-1, num_neighbors))
  distances = jnp.zeros((num_points, num_neighbors), x.dtype)
  distances = distances.at[places].set(squared.reshape(-1, num_neighbors))
  return found, distances

"""The nearest neighbours of points, exactly, and places by their graph.

Axes: N points, M others, D features, n neighbours, B rows of a block, d numbers
of a place.

References:
  Ng, Jordan and Weiss (2002), On spectral clustering: analysis and an
    algorithm, https://papers.nips.cc/paper/2092
  McConville, Santos-Rodriguez, Piechocki and Craddock (2021), N2D: (not too)
    deep clustering via clustering the local manifold of an autoencoded
    embedding, https://doi.org/10.1109/ICPR48806.2021.9413131
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh

from jaxclust import checks
from jaxclust.frames import dot, unit_rows

# Maximum numbers in a block of distances.
_BLOCK = 2**24


class Manifold(NamedTuple):
  """Points whose graph of neighbours gave each a place."""

  points: jax.Array  # [N, D]
  places: jax.Array  # [N, d] of length one


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
  checks.check_count('num_neighbors', num_neighbors, high=len(x) - 1)
  return _nearest(x, x, num_neighbors, True)


def nearest_in(
  points: jax.Array, x: jax.Array, num_neighbors: int
) -> tuple[jax.Array, jax.Array]:
  """The same of points `[M, D]`, whose neighbours `[M, n]` are among others
  `[N, D]`; a point that is one of them is its own."""
  return _nearest(points, x, num_neighbors, False)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(points, x, num_neighbors, are_same):
  """The nearest of points `[N, D]` to x `[M, D]`; none is its own if x are the
  same."""
  offset = points.mean(axis=0)[None]
  points, x = points - offset, x - offset
  norms = jnp.square(points).sum(axis=1)

  def of_rows(own, numbers):
    closeness = 2 * dot(own, points.T) - norms[None]
    if are_same:
      places = jnp.arange(len(numbers)), numbers
      closeness = closeness.at[places].set(-jnp.inf)
    best, found = lax.top_k(closeness, num_neighbors)
    length = jnp.square(own).sum(axis=1, keepdims=True)
    return found, jnp.maximum(length - best, 0)

  if not isinstance(x.shape[0], int):  # it is a symbol in an export
    return of_rows(x, None)
  size = max(1, min(len(x), _BLOCK // len(points)))

  def of_block(start):
    start = jnp.minimum(start, len(x) - size)  # the last ones overlap
    numbers = start + jnp.arange(size)
    own = lax.dynamic_slice_in_dim(x, start, size)
    return numbers, *of_rows(own, numbers)

  starts = size * jnp.arange(-(-len(x) // size))
  rows, *found = lax.map(of_block, starts)

  def put(blocks):
    whole = jnp.zeros((len(x), num_neighbors), blocks.dtype)
    return whole.at[rows.reshape(-1)].set(blocks.reshape(-1, num_neighbors))

  return tuple(map(put, found))


def embed(x: jax.Array, num_neighbors: int, num_features: int) -> Manifold:
  """Places of points by the graph of their neighbours.

  Points are joined if one is among the nearest of the other. The places are the
  leading eigenvectors of the normalised adjacency matrix, with rows of length
  one (Ng et al.): near points of a connected cluster get near places. Points of
  no connection with the d largest groups have the place 0.

  Args:
    x: `[N, D]` points.
    num_neighbors: n.
    num_features: d, below N.

  Raises:
    InputError: if there are too few points.
  """
  num_points = len(x)
  checks.check_count('num_features', num_features, high=num_points - 1)
  numbers = np.asarray(nearest(x, num_neighbors)[0]).reshape(-1)
  rows = np.repeat(np.arange(num_points), num_neighbors)
  shape = num_points, num_points
  graph = scipy.sparse.coo_array((np.ones(len(rows)), (rows, numbers)), shape)
  graph = graph.tocsr().maximum(graph.T.tocsr())
  vectors = _leading_vectors(graph, num_features)
  places = unit_rows(jnp.asarray(vectors, jnp.float32))
  return Manifold(jnp.asarray(x), places)


def _leading_vectors(graph, count):
  """The leading eigenvectors `[N, count]` of a normalised adjacency matrix.

  Those of eigenvalue one are known: there is one for each connected component.
  ARPACK, which misses copies of an eigenvalue, finds the others.
  """
  degrees = graph.sum(axis=1)
  scale = scipy.sparse.diags_array(1 / np.sqrt(degrees))
  matrix = scale @ graph @ scale
  _, component = connected_components(graph, directed=False)
  sizes = np.bincount(component)
  largest = np.argsort(-sizes, kind='stable')[:count]
  known = np.sqrt(degrees)[:, None] * (component[:, None] == largest[None])
  known /= np.linalg.norm(known, axis=0)
  missing = count - known.shape[1]
  if not missing:
    return known

  def apply(v):
    return matrix @ v - known @ (known.T @ v)

  operator = LinearOperator(graph.shape, apply, dtype=matrix.dtype)
  start = np.random.default_rng(0).normal(size=len(degrees))
  _, others = eigsh(operator, missing, which='LA', v0=start, tol=1e-6)
  return np.concatenate([known, others[:, ::-1]], axis=1)


def extend(manifold: Manifold, x: jax.Array, num_neighbors: int) -> jax.Array:
  """Places `[M, d]` of points `[M, D]`: the mean of those of their nearest
  neighbours in the manifold, with length one."""
  numbers, _ = nearest_in(manifold.points, x, num_neighbors)
  return unit_rows(manifold.places[numbers].mean(axis=1))

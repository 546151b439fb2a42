"""Labels, distances and scores of points under given centers.

All functions raise an InputError if shapes do not fit, or if x or weights are
not finite.

Axes: N points, D features, K centers, B rows of a block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclust import checks
from jaxclust.algorithms.distances import squared_distances
from jaxclust.algorithms.lloyd import assign, pad
from jaxclust.frames import Frame, Sphere, dot
from jaxclust.inputs import (
  METRICS,
  check_values,
  on_any_mesh,
  padded_groups,
  place,
)
from jaxclust.programs import compiled
from jaxclust.rows import map_rows, reduce_rows


@on_any_mesh
def predict(
  centers: ArrayLike,
  x: ArrayLike,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """Labels `[N]` int32 of the nearest of the centers `[K, D]`; ties: the first.

  Examples:
    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [10.0]], np.float32)
    >>> predict(np.array([[9.0], [2.0]]), x).tolist()
    [1, 1, 0]
  """
  rows, params = _prepare(centers, x, metric, block_size)
  return rows.trim(_pass(map_rows, _label_block, params, rows))


@on_any_mesh
def transform(
  centers: ArrayLike,
  x: ArrayLike,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """Distances `[N, K]` of points `[N, D]` from the centers `[K, D]`.

  With the cosine metric, `1 - cos`.
  """
  rows, params = _prepare(centers, x, metric, block_size)
  block = _cosine_distances if metric == 'cosine' else _distances
  found = rows.trim(_pass(map_rows, block, params, rows))
  return found[:, : np.shape(centers)[0]]


@on_any_mesh
def score(
  centers: ArrayLike,
  x: ArrayLike,
  sample_weight: ArrayLike | None = None,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """The negative inertia `[]` of points `[N, D]`: higher is better.

  Weights may all be 0.
  """
  rows, params = _prepare(centers, x, metric, block_size, sample_weight)
  return _pass(reduce_rows, _score_block, params, rows)


def _prepare(centers, x, metric, block_size, sample_weight=None):
  """Checked rows in a frame made for the centers, and these, in the data's
  units."""
  checks.check_choice('metric', metric, METRICS)
  options = {'block_size': block_size, 'may_be_zero': True}
  rows = check_values(place(x, sample_weight, **options))
  checks.check_centers('centers', centers, None, rows.shape[1])
  lib = jnp if checks.is_traced(centers) else np
  centers = lib.asarray(centers).astype(rows.dtype)
  size = padded_groups(len(centers), rows)
  rows = dataclasses.replace(rows, frame=_frame_of(metric, centers, lib))
  return rows, pad(centers[None], len(centers), size)


@functools.partial(compiled, static=(0, 1))
def _pass(over, block, params, rows):
  """`map_rows` or `reduce_rows` of a block."""
  centers = rows.frame.apply(params.centers)
  params = params._replace(centers=centers), rows.frame.scale
  return over(block, params, rows, width=centers[..., 0].size)


def _frame_of(metric, centers, lib):
  """A frame in which the distance from centers `[K, D]` keeps its digits.

  It is data of the pass, and scales by a power of two, so that a row that is a
  center is where that is, in whatever order XLA subtracts and multiplies.
  """
  if metric == 'cosine':
    return Sphere(lib.ones((), centers.dtype))
  offset = centers.mean(axis=0)
  spread = lib.abs(centers - offset[None]).max()
  _, exponent = lib.frexp(lib.where(spread > 0, spread, 1))
  return Frame(offset, lib.ldexp(lib.ones((), centers.dtype), exponent))


def _label_block(params, x):
  clusters, _ = params
  return assign(clusters, x)[1][0]


def _score_block(params, x, weight):
  clusters, scale = params
  least, _ = assign(clusters, x)
  return -dot(least[0] * jnp.square(scale), weight)


def _distances(params, x):
  clusters, scale = params
  return jnp.sqrt(squared_distances(x, clusters.centers[0]).T) * scale


def _cosine_distances(params, x):
  return jnp.square(_distances(params, x)) / 2

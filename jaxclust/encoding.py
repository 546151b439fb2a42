"""Networks at work on all images, on the device or streamed from the host.

Axes: N images, B batch, H height, W width, C channels, D numbers of an
embedding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust.frames import as_float
from jaxclust.methods import Method
from jaxclust.programs import compiled
from jaxclust.rows import Rows, map_rows


def embed(
  method: Method, params: Any, images: jax.Array | np.ndarray, batch_size: int
) -> jax.Array:
  """Embeddings `[N, D]` of images `[N, H, W, C]` by one network, in batches."""
  return _map_images(_embed_block, method, params, images, batch_size)


def errors(
  method: Method, params: Any, images: jax.Array | np.ndarray, batch_size: int
) -> jax.Array:
  """Losses `[N]` of images `[N, H, W, C]` as they are, in batches; of a method
  that has targets, the errors of reconstructions."""
  return _map_images(_errors_block, method, params, images, batch_size)


def decode(
  method: Method, params: Any, embeddings: jax.Array, batch_size: int
) -> jax.Array:
  """Images `[N, H, W, C]` of embeddings `[N, D]` by one network, in batches."""
  return _map_rows(_decode_block, method, (), params, embeddings, batch_size)


def _map_images(block, method, params, images, batch_size):
  shape, is_byte = images.shape[1:], images.dtype == np.uint8
  x = images.reshape(len(images), -1)
  return _map_rows(block, method, (shape, is_byte), params, x, batch_size)


def _map_rows(block, method, static, params, x, batch_size):
  weight = np.ones(len(x), np.float32)
  if isinstance(x, jax.Array):
    weight = jax.device_put(weight)
  rows = Rows(x, weight, block_size=batch_size)
  return _map_compiled(block, method, static, params, rows)


@functools.partial(compiled, static=(0, 1, 2))
def _map_compiled(block, method, static, params, rows):
  return map_rows(_block_of(block, method, static), params, rows)


@functools.cache
def _block_of(block, method, static):
  return functools.partial(block, method, static)


def _pixels_of(static, x):
  shape, is_byte = static
  return (x / 255 if is_byte else x).reshape(-1, *shape)


def _embed_block(method, static, params, x):
  return method.embed(params, _pixels_of(static, x))


def _errors_block(method, static, params, x):
  pixels = _pixels_of(static, x)
  found = method.decode(params, method.embed(params, pixels))
  return jnp.square(found - pixels).mean(axis=(1, 2, 3))


def _decode_block(method, static, params, x):
  del static
  return method.decode(params, x)


def as_pixels(images: jax.Array) -> jax.Array:
  """Images as floats; bytes 0 to 255 become 0 to 1."""
  pixels = as_float(images)
  return pixels / 255 if images.dtype == jnp.uint8 else pixels


def as_points(images: jax.Array) -> jax.Array:
  """Pixels `[N, H W C]` of images `[N, H, W, C]`.

  Points of bytes are those of the same images as floats, to the last bit.
  """
  points = as_float(images).reshape(images.shape[0], -1)
  if images.dtype != jnp.uint8:
    return points
  # XLA would multiply by the reciprocal of a constant.
  return points / lax.optimization_barrier(jnp.full_like(points, 255))

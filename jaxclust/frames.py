"""Coordinates in which float32 keeps its digits.

Axes: N rows, D features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Frame(NamedTuple):
  """Coordinates in which the data have mean zero and mean variance one."""

  offset: jax.Array  # [D]
  scale: jax.Array  # [] positive

  def apply(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` from the data's units into the frame."""
    return (as_float(x) - self._offset(x)) * (1 / self.scale)

  def invert(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` of the frame back into the data's units."""
    return self._offset(x) + x * self.scale

  def project(self, centers: jax.Array) -> jax.Array:
    """Returns centers `[..., D]` as they are: they may lie anywhere."""
    return centers

  def _offset(self, x):
    return self.offset.reshape((1,) * (x.ndim - 1) + self.offset.shape)


class Sphere(NamedTuple):
  """Coordinates that keep only the direction of a row."""

  scale: jax.Array  # [] root of the mean variance of rows of length one

  def apply(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` onto the sphere of radius `1 / scale`."""
    return unit_rows(x) / self.scale

  def invert(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` of the sphere to length one."""
    return x * self.scale

  def project(self, centers: jax.Array) -> jax.Array:
    """Moves centers `[..., D]` onto the sphere along their rays."""
    return self.apply(centers)


def float_dtype(x: Any) -> Any:
  """float64 for numbers of 8 bytes where JAX has it enabled, else float32."""
  wide = np.dtype(x.dtype).itemsize >= 8 and jax.config.jax_enable_x64
  return jnp.float64 if wide else jnp.float32


def as_readable(x: Any) -> Any:
  """Casts an array of NumPy's whose numbers JAX would wrap, or does not read;
  any other stays."""
  if not isinstance(x, np.ndarray):
    return x
  plain = x.dtype.isnative and x.dtype.itemsize <= 4
  return x if plain else x.astype(float_dtype(x))


def as_float(x: jax.Array) -> jax.Array:
  """Casts integers and half precision to float32; float64 stays."""
  return x.astype(float_dtype(x))


def unit_rows(x: jax.Array, lib: Any = jnp) -> jax.Array:
  """Divides rows `[..., D]` by their length, in JAX or NumPy; rows of zeros
  stay."""
  x = as_float(x) if lib is jnp else x
  largest = lib.abs(x).max(axis=-1, keepdims=True)
  x = x / lib.where(largest > 0, largest, 1)
  length = lib.sqrt(lib.square(x).sum(axis=-1, keepdims=True))
  return x / lib.where(length > 0, length, 1)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """The product of vectors or matrices in true float32 on every platform."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

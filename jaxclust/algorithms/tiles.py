"""Nearest centers and sums by label on NVIDIA's GPUs, a tile at a time.

The N K distances of a step stay in registers, where XLA's products write them
to memory. Products are made of TF32 numbers: three for each of float32's, which
keep its digits, or one, which keeps 11 bits. A sum multiplies 0 and 1, which
bfloat16 has, by the three bfloat16 numbers that a float32 is the sum of.

Axes: B rows, D features, K centers, R runs.

Reference:
  Ootomo and Yokota (2022), Recovering single precision accuracy from Tensor
    Cores while surpassing the FP32 theoretical peak performance,
    https://doi.org/10.1177/10943420221090256
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Name of a precision -> how products of float32 numbers are made.
PRECISIONS = {
  'highest': lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
  'tf32': lax.DotAlgorithmPreset.TF32_TF32_F32,
}

# Maximum rows, centers and features of a tile of distances, by precision. Tiles
# of all parts of numbers fit the shared memory of every GPU since Ampere.
_DISTANCES = {'highest': (128, 64, 32), 'tf32': (64, 64, 128)}

# Maximum rows, clusters and features of a tile of sums.
_SUMS = 32, 128, 128

# Minimum length of a tile, which tensor cores multiply.
_LEAST = 16

# Warps of a program.
_WARPS = 4

# Programs of sums that keep a GPU busy.
_PROGRAMS = 528


def usable(x: jax.Array) -> bool:
  """Whether a program that reads rows `[B, D]` can have tiles."""
  known = isinstance(x.shape[0], int)  # it is a symbol in an export
  return known and available(x.dtype)


def available(dtype: Any) -> bool:
  """Whether there is a GPU that multiplies TF32 numbers, for rows of a dtype
  that they make."""
  return dtype == jnp.float32 and _has_tensor_cores()


@functools.cache
def _has_tensor_cores():
  if jax.default_backend() != 'gpu':
    return False
  device = jax.local_devices()[0]
  if not device.device_kind.startswith('NVIDIA'):
    return False
  return float(device.compute_capability) >= 8.0  # Ampere has TF32 first


def on_cuda(tiled: Callable, plain: Callable, *arrays: jax.Array) -> Any:
  """What `tiled` makes of arrays in a program for CUDA, else `plain`."""
  return lax.platform_dependent(*arrays, cuda=tiled, default=plain)


def nearest(
  x: jax.Array,
  centers: jax.Array,
  lengths: jax.Array,
  precision: str = 'highest',
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The least of `lengths - 2 x centers^T` and its index, `[R, B]`; ties: the
  first.

  Args:
    x: `[B, D]` rows.
    centers: `[R, K, D]`.
    lengths: `[R, K]` their squared lengths; inf for centers to leave out.
    precision: of `PRECISIONS`.
    interpret: whether JAX interprets the program, on any device.
  """
  pl, triton = _pallas()
  (num_rows, num_features), (num_runs, num_centers) = x.shape, lengths.shape
  rows, width, depth = _DISTANCES[precision]
  tile = rows, _length(num_centers, width), _length(num_features, depth)
  # A CPU, which interprets, has no TF32.
  product = lax.Precision.HIGHEST if interpret else PRECISIONS[precision]
  like = functools.partial(jax.ShapeDtypeStruct, (num_runs, num_rows))
  return pl.pallas_call(
    functools.partial(_nearest_kernel, tile, product),
    grid=(pl.cdiv(num_rows, rows), num_runs),
    out_shape=(like(jnp.float32), like(jnp.int32)),
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=interpret,
    name='nearest',
  )(x, centers, lengths)


def _pallas():
  """Pallas and its part for Triton, which take some time to import."""
  from jax.experimental import pallas
  from jax.experimental.pallas import triton

  return pallas, triton


def _nearest_kernel(tile, product, x, centers, lengths, least, labels):
  """What a program makes of a tile's rows in one run, from references."""
  pl, triton = _pallas()
  (num_rows, num_features), num_centers = x.shape, lengths.shape[1]
  rows, width, depth = tile
  num_parts = pl.cdiv(num_features, depth)
  run, start = pl.program_id(1), pl.program_id(0) * rows
  inside = start + _numbers(rows) < num_rows

  def load(ref, place, known, part):
    ref = ref.at[*place, pl.ds(part * depth, depth)]
    feature = part * depth + _numbers(depth)
    known = known[:, None] & (feature < num_features)[None]
    return triton.load(ref, mask=known, other=0.0)

  def load_x(part):
    return load(x, (pl.ds(start, rows),), inside, part)

  x_once = load_x(0) if num_parts == 1 else None

  def look(k, best):
    first = k * width
    known = first + _numbers(width) < num_centers

    def add(part, total):
      here = load_x(part) if x_once is None else x_once
      there = load(centers, (run, pl.ds(first, width)), known, part)
      return total + lax.dot_general(
        here,
        there,
        (((1,), (1,)), ((), ())),
        precision=product,
        preferred_element_type=jnp.float32,
      )

    inner = jnp.zeros((rows, width), jnp.float32)
    inner = add(0, inner) if num_parts == 1 else _loop(num_parts, add, inner)
    ref = lengths.at[run, pl.ds(first, width)]
    length = triton.load(ref, mask=known, other=jnp.inf)
    found = length[None] - 2 * inner
    part, number = found.min(axis=1), lax.argmin(found, 1, jnp.int32)
    nearer = part < best[0]
    return (
      jnp.where(nearer, part, best[0]),
      jnp.where(nearer, first + number, best[1]),
    )

  best = jnp.full((rows,), jnp.inf, x.dtype), jnp.zeros((rows,), jnp.int32)
  best = _loop(pl.cdiv(num_centers, width), look, best)
  for ref, value in zip((least, labels), best, strict=True):
    triton.store(ref.at[run, pl.ds(start, rows)], value, mask=inside)


# Numbers and counters of 32 bits, whatever JAX's default is.
_numbers = functools.partial(lax.iota, jnp.int32)


def _loop(count, body, carry):
  return lax.fori_loop(np.int32(0), np.int32(count), body, carry)


def _length(count, most):
  """The power of two that holds a count, or the most of a tile."""
  return min(max(_LEAST, 1 << (count - 1).bit_length()), most)


def sums(
  labels: jax.Array,
  num_clusters: int,
  values: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """Sums `[R, K, D]` of the rows `[B, D]` with each label `[R, B]`.

  Each program sums one part of the rows, the parts in order: sums are the same
  each time. `interpret` is as for `nearest`.
  """
  pl, triton = _pallas()
  (num_rows, num_features), num_runs = values.shape, len(labels)
  rows, width, depth = _SUMS
  width, depth = _length(num_clusters, width), _length(num_features, depth)
  tiles = pl.cdiv(num_clusters, width), pl.cdiv(num_features, depth)
  num_tiles = pl.cdiv(num_rows, rows)
  others = num_runs * tiles[0] * tiles[1]
  num_parts = min(num_tiles, max(1, _PROGRAMS // others))
  tiles_of_part = pl.cdiv(num_tiles, num_parts)

  def kernel(labels, values, sums):
    part, column = pl.program_id(0), pl.program_id(2) * depth
    run, first = pl.program_id(1) // tiles[0], pl.program_id(1) % tiles[0]
    cluster = first * width + _numbers(width)
    known = (column + _numbers(depth) < num_features)[None]

    def add(tile, total):
      start = (part * tiles_of_part + tile) * rows
      inside = start + _numbers(rows) < num_rows
      ref = labels.at[run, pl.ds(start, rows)]
      label = triton.load(ref, mask=inside, other=-1)
      ref = values.at[pl.ds(start, rows), pl.ds(column, depth)]
      value = triton.load(ref, mask=inside[:, None] & known, other=0.0)
      chosen = (cluster[:, None] == label[None]).astype(jnp.bfloat16)
      for piece in _split(value):
        total += jnp.dot(chosen, piece, preferred_element_type=jnp.float32)
      return total

    total = jnp.zeros((width, depth), jnp.float32)
    total = _loop(tiles_of_part, add, total)
    place = pl.ds(first * width, width), pl.ds(column, depth)
    known = (cluster < num_clusters)[:, None] & known
    triton.store(sums.at[part, run, *place], total, mask=known)

  shape = num_parts, num_runs, num_clusters, num_features
  found = pl.pallas_call(
    kernel,
    grid=(num_parts, num_runs * tiles[0], tiles[1]),
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=2),
    interpret=interpret,
    name='sums',
  )(labels, values)
  return found.sum(axis=0)


def _split(value: Any) -> list[Any]:
  """Three bfloat16 numbers whose sum a float32 is."""
  pieces = []
  for _ in range(3):
    pieces.append(value.astype(jnp.bfloat16))
    value = value - pieces[-1].astype(jnp.float32)
  return pieces

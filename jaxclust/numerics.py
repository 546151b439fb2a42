"""Passes over rows in blocks, frames of reference, distances, checks of input.

Everything here serves functions that read `x` `[N, D]` of any offset and scale
in float32. They work in a frame, `(x - offset) / scale`, formed block by block
while a block is in cache, so that x is never copied.

Axes: N points, D features, K clusters, R restarts, B rows of a block.
"""

import enum
import numbers
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust.errors import InputError, one_line  # noqa: F401

# True float32 products: a GPU would round to TF32, a TPU to bfloat16.
PRECISION = lax.Precision.HIGHEST

# Numbers in a block and what is computed from it: what the caches of a CPU
# hold, and enough rows to fill an accelerator.
_CPU_BLOCK = 2**20
_ACCELERATOR_BLOCK = 2**25


# A distance is trusted to 1e-4 if it is this many roundings of |x|^2 or more;
# up to this share of the rows of a block may fall short of it.
_TRUSTED_ROUNDINGS = 1e4
_FEW_ROWS = 1 / 64


class StopReason(enum.IntEnum):
  """Why an iteration is over, or that it is not."""

  RUNNING = 0
  CONVERGED = 1
  MAX_STEPS = 2
  NONFINITE = 3


class Frame(NamedTuple):
  """Coordinates in which the data are centered and of order one."""

  offset: jax.Array  # [D] the mean of the data
  scale: jax.Array  # [] root of the features' mean variance, positive

  def enter(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` from the data's units into the frame."""
    offset = jnp.broadcast_to(self.offset, x.shape)
    return (as_float(x) - offset) / self.scale

  def leave(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` from the frame back into the data's units."""
    return jnp.broadcast_to(self.offset, x.shape) + x * self.scale

  def project(self, centers: jax.Array) -> jax.Array:
    """Centers `[..., D]` in the frame need not be anywhere in particular."""
    return centers


class Sphere(NamedTuple):
  """Coordinates in which only the direction of a row is left."""

  scale: jax.Array  # [] root of the mean variance of rows of length one

  def enter(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` onto the sphere of radius `1 / scale`."""
    return unit_rows(x) / self.scale

  def leave(self, x: jax.Array) -> jax.Array:
    """Maps rows `[..., D]` of the sphere to length one."""
    return x * self.scale

  def project(self, centers: jax.Array) -> jax.Array:
    """Moves centers `[..., D]` onto the sphere along their rays."""
    return self.enter(centers)


class Points(NamedTuple):
  """The data as passes in a frame read them."""

  x: jax.Array  # [N, D] in the data's units
  sample_weight: jax.Array  # [N]
  norms: jax.Array  # [N] squared lengths in the frame
  frame: Frame | Sphere


def float_dtype(x: jax.Array) -> Any:
  """The dtype of a computation on x: float64 for float64, else float32."""
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def as_float(x: jax.Array) -> jax.Array:
  """Casts integers and half precision to float32; float64 stays."""
  return x.astype(float_dtype(x))


def unit_rows(x: jax.Array) -> jax.Array:
  """Divides rows `[..., D]` by their length; rows of zeros stay."""
  x = as_float(x)
  largest = jnp.abs(x).max(axis=-1, keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)
  length = jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))
  return x / jnp.where(length > 0, length, 1)


def as_arrays(
  x: jax.Array, sample_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Points `[N, D]`, and weights `[N]` in the dtype of the computation.

  Raises:
    InputError: if their shapes do not fit.
  """
  x = jnp.asarray(x)
  if sample_weight is None:
    # Behind a barrier, for XLA would fold what follows from them, slowly.
    return x, lax.optimization_barrier(jnp.ones(x.shape[0], float_dtype(x)))
  weight = jnp.asarray(sample_weight).astype(float_dtype(x))
  if weight.shape != x.shape[:1]:
    raise InputError(
      f'sample_weight has shape {weight.shape}: x has {x.shape[0]} rows, '
      'each needs one weight'
    )
  return x, weight


def block_rows(num_rows: int, width: int, block_size: int | None = None) -> int:
  """Returns the rows of a block of which each row takes `width` numbers.

  Rows whose number is a symbol, as in an export, are one block.

  Raises:
    InputError: if the caller's wish, block_size, is no number of rows.
  """
  if block_size is not None:
    return min(check_count('block_size', block_size), num_rows)
  if not isinstance(num_rows, int):
    return num_rows
  on_cpu = jax.default_backend() == 'cpu'
  budget = _CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK
  return max(1, min(num_rows, max(256, budget // max(1, width))))


def scan_blocks(
  fn: Callable, carry: Any, rows: Any, block_size: int
) -> tuple[Any, Any]:
  """Walks over rows in blocks, with a carry and with outputs for each row.

  The last block starts early enough to be whole, so some of its rows are seen
  twice. `fresh` is 0 for those, and their outputs are written again.

  Args:
    fn: `(carry, block, fresh) -> (carry, outputs)`; `block` is `rows` cut to
      `[B, ...]`, `fresh` is `[B]` of 0 and 1, `outputs` a pytree of `[B, ...]`.
    carry: pytree of arrays.
    rows: pytree of arrays `[N, ...]`.
    block_size: B, at most N.

  Returns:
    The last carry, and the outputs as a pytree of `[N, ...]`.
  """
  leaves = jax.tree.leaves(rows)
  num_rows = leaves[0].shape[0]
  block_size = min(block_size, num_rows)

  def at(start):
    return jax.tree.map(
      lambda a: lax.dynamic_slice_in_dim(a, start, block_size), rows
    )

  def body(i, state):
    carry, written = state
    start = jnp.minimum(i * block_size, num_rows - block_size)
    fresh = start + jnp.arange(block_size) >= i * block_size
    carry, outputs = fn(carry, at(start), fresh)
    written = jax.tree.map(
      lambda a, o: lax.dynamic_update_slice_in_dim(a, o, start, 0),
      written,
      outputs,
    )
    return carry, written

  fresh = jax.ShapeDtypeStruct((block_size,), bool)
  _, outputs = jax.eval_shape(fn, carry, jax.eval_shape(at, 0), fresh)
  written = jax.tree.map(
    lambda o: jnp.zeros((num_rows, *o.shape[1:]), o.dtype), outputs
  )
  num_blocks = -(-num_rows // block_size)
  return lax.fori_loop(0, num_blocks, body, (carry, written))


def visit_rows(
  fn: Callable, carry: Any, wanted: jax.Array, block_size: int
) -> Any:
  """Walks over the rows that are wanted, a block of them at a time.

  Args:
    fn: `(carry, rows, fresh) -> carry`; `rows` are indices `[B]`, of which the
      last block may fall short: `fresh` is 0 where an index is none.
    carry: pytree of arrays.
    wanted: `[N]` bool.
    block_size: B, at most N.

  Returns:
    The last carry.
  """
  num_rows = wanted.shape[0]
  block_size = min(block_size, num_rows)
  rank = jnp.cumsum(wanted, dtype=jnp.int32)
  place = jnp.where(wanted, rank - 1, num_rows)
  rows = lax.iota(jnp.int32, num_rows)
  rows = jnp.zeros_like(rows).at[place].set(rows, mode='drop')

  def body(i, carry):
    start = jnp.minimum(i * block_size, num_rows - block_size)
    number = start + lax.iota(jnp.int32, block_size)
    fresh = (number >= i * block_size) & (number < rank[-1])
    return fn(carry, lax.dynamic_slice_in_dim(rows, start, block_size), fresh)

  return lax.fori_loop(0, -(-rank[-1] // block_size), body, carry)


def sum_blocks(
  fn: Callable, x: jax.Array, sample_weight: jax.Array, block_size: int
) -> Any:
  """Sums `fn(x [B, D], sample_weight [B])`, a pytree of sums, over all rows."""

  def body(total, block, fresh):
    x, weight = block
    part = fn(x, jnp.where(fresh, weight, 0))
    return jax.tree.map(jnp.add, total, part), ()

  block_size = min(block_size, x.shape[0])
  shapes = jax.eval_shape(fn, x[:block_size], sample_weight[:block_size])
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return scan_blocks(body, zeros, (x, sample_weight), block_size)[0]


def map_blocks(fn: Callable, rows: Any, block_size: int) -> Any:
  """Applies `fn` to blocks `[B, ...]` of rows; outputs are `[N, ...]`."""

  def body(carry, block, fresh):
    del fresh
    return carry, fn(block)

  return scan_blocks(body, (), rows, block_size)[1]


def side_by_side(fn: Callable, *runs: Any) -> Any:
  """Applies `fn` to each of R runs, pytrees of `[R, ...]`: one after another on
  a CPU, whose cores one alone fills, at once elsewhere."""
  return lax.platform_dependent(
    *runs,
    cpu=lambda *runs: lax.map(lambda run: fn(*run), runs),
    default=jax.vmap(fn),
  )


def find_frame(
  x: jax.Array,
  sample_weight: jax.Array,
  block_size: int,
  view: Callable = as_float,
) -> Frame:
  """Finds the frame in which weighted data have mean 0 and mean variance 1.

  Sums are of differences from one of the rows, and squares are of numbers of
  at most 2, so that neither an offset nor a scale costs digits. The data are
  the rows as `view` shows them.
  """
  origin = view(x[jnp.argmax(sample_weight > 0)])

  def first(x, weight):
    difference = view(x) - origin[None]
    return dot(weight, difference), weight.sum()

  def largest(top, block, fresh):
    x, weight = block
    size = jnp.abs(view(x) - origin[None]).max(axis=1)
    return jnp.maximum(top, jnp.where(weight > 0, size, 0).max()), ()

  total, weight = sum_blocks(first, x, sample_weight, block_size)
  offset = origin + total / weight
  top, _ = scan_blocks(
    largest, jnp.zeros((), origin.dtype), (x, sample_weight), block_size
  )
  top = jnp.where(top > 0, top, 1)

  def second(x, weight):
    inside = (view(x) - offset[None]) / top
    return dot(weight, jnp.square(inside).mean(axis=1))

  variance = sum_blocks(second, x, sample_weight, block_size) / weight
  return Frame(offset, top * jnp.sqrt(jnp.where(variance > 0, variance, 1)))


def squared_distances(
  x: jax.Array,
  centers: jax.Array,
  norms: jax.Array,
  reduce: Callable = lambda squared: squared,
) -> Any:
  """Squared distances `[K, B]` of rows `[B, D]` from centers `[K, D]`.

  By one matrix product, whose error is a rounding of `|x|^2`. Where that blurs
  the distance to the nearest center for more than a few rows, because points
  lie close together but far from the origin, by differences instead.

  Args:
    x: rows in a frame.
    centers: in the same frame.
    norms: `[B]` squared lengths of the rows, see `squared_norms`.
    reduce: what to make of the distances while they are in cache.

  Returns:
    `reduce` of the distances.
  """
  lengths = jnp.square(centers).sum(axis=1)[:, None]
  squared = norms[None] + (lengths - 2 * dot(centers, x.T))
  squared = jnp.maximum(squared, 0)
  rounding = jnp.finfo(squared.dtype).eps * norms
  blurred = squared.min(axis=0) < _TRUSTED_ROUNDINGS * rounding

  def by_differences():
    return lax.map(lambda c: jnp.square(x - c[None]).sum(axis=1), centers)

  return lax.cond(
    blurred.mean() > _FEW_ROWS,
    lambda: reduce(by_differences()),
    lambda: reduce(squared),
  )


def nearest(squared: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The least of distances `[R, K, B]` and which it is, `[R, B]`; ties: the
  first. Two plain minima, which vectorise where argmin does not."""
  least = squared.min(axis=1)
  last = squared.shape[1] - 1
  number = lax.broadcasted_iota(jnp.int32, squared.shape, 1)
  found = jnp.where(squared == least[:, None], number, last)
  return least, found.min(axis=1)


def members(labels: jax.Array, num_clusters: int, dtype: Any) -> jax.Array:
  """Labels `[R, B]` as rows `[R K, B]` of 0 and 1; -1 is in no cluster."""
  number = lax.iota(jnp.int32, num_clusters)[None, :, None]
  inside = labels[:, None] == number
  return inside.reshape(-1, labels.shape[1]).astype(dtype)


def squared_norms(x: jax.Array, frame: Frame, block_size: int) -> jax.Array:
  """Squared lengths `[N]` of the rows of x, seen in the frame."""
  return map_blocks(
    lambda x: jnp.square(frame.enter(x)).sum(axis=1), x, block_size
  )


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """The product of vectors or matrices in true float32 on every platform."""
  return jnp.matmul(a, b, precision=PRECISION)


def best_finite(scores: jax.Array) -> jax.Array:
  """Index of the smallest finite score of `[R]`; 0 if none is finite."""
  return jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))


def mark_out_of_steps(state: Any, max_steps: jax.Array) -> Any:
  """A state whose runs have stopped where they have made max_steps steps."""
  running = state.stop_reason == StopReason.RUNNING
  out = running & (state.num_steps >= max_steps)
  reason = jnp.where(out, StopReason.MAX_STEPS, state.stop_reason)
  return state._replace(stop_reason=reason.astype(jnp.int32))


def content_ids(
  x: jax.Array, sample_weight: jax.Array, block_size: int
) -> jax.Array:
  """Numbers `[N]` uint32 that go with the content of a row, not its place.

  Equal rows are told apart by their occurrence, heavier ones first, so that
  rows of weight zero do not disturb the others.
  """
  multipliers = jax.random.bits(jax.random.key(0), x.shape[1:], jnp.uint32)
  multipliers = multipliers[None] | jnp.uint32(1)

  def hash_rows(x):
    x = as_float(x)
    x = jnp.where(x == 0, 0, x)  # -0.0 is 0.0
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    if bits.ndim > x.ndim:  # the halves of float64
      bits = _mix(bits[..., 0]) ^ bits[..., 1]
    return _mix((_mix(bits) * multipliers).sum(axis=1, dtype=jnp.uint32))

  code = map_blocks(hash_rows, x, block_size)
  place = lax.iota(jnp.int32, x.shape[0])
  code, _, place = lax.sort((code, -sample_weight, place), num_keys=2)
  is_first = jnp.concatenate([jnp.ones(1, bool), code[1:] != code[:-1]])
  rank = lax.iota(jnp.int32, x.shape[0])
  first = lax.cummax(jnp.where(is_first, rank, 0))
  ids = _mix(code ^ _mix((rank - first).astype(jnp.uint32)))
  return jnp.zeros_like(ids).at[place].set(ids)


def arrivals(seed: jax.Array, ids: jax.Array, mass: jax.Array) -> jax.Array:
  """Times `[N]` of an exponential race; the first row is a draw by mass.

  The k first rows are k draws without replacement. The noise of a row depends
  on the seed (a uint32) and on its id alone. Rows of mass 0 come after all
  others, rows of negative mass never.
  """
  noise = _mix(ids ^ _mix(jnp.broadcast_to(seed, ids.shape)))
  uniform = (noise.astype(mass.dtype) + 0.5) * 2.0**-32
  exponential = -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))
  tiny = jnp.finfo(mass.dtype).tiny * 2.0**10
  return jnp.where(mass < 0, jnp.inf, exponential / jnp.maximum(mass, tiny))


def _mix(bits: jax.Array) -> jax.Array:
  """A bijection of uint32 that spreads every bit (Wellons, lowbias32)."""
  bits = (bits ^ (bits >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> jnp.uint32(16))


def check_count(name: str, value: Any, low: int = 1) -> int:
  """Returns a whole number of at least `low`.

  Raises:
    InputError: if the value is anything else.
  """
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < low:
    raise InputError(
      f'{name} is {value!r}: it must be a whole number of at least {low}'
    )
  return int(value)


def check_number(
  name: str, value: Any, low: float = 0.0, high: float = np.inf
) -> None:
  """Checks that a number, unless it is traced, is finite and in its bounds.

  Raises:
    InputError: if it is not.
  """
  if isinstance(value, jax.core.Tracer):
    return
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if getattr(value, 'ndim', None) == 0:
    number = True
  if not number or not np.isfinite(float(value)) or not low <= value <= high:
    bounds = f'of at least {low:g}'
    if high < np.inf:
      bounds = f'from {low:g} to {high:g}'
    raise InputError(
      f'{name} is {value!r}: it must be a finite number {bounds}'
    )


def check_features(x: Any, num_features: int) -> None:
  """Checks that points have the features of what was fitted before.

  Raises:
    InputError: if they have others.
  """
  shape = np.shape(x)
  if len(shape) != 2 or shape[1] != num_features:
    raise InputError(
      f'x has shape {shape}: it must be [N, {num_features}], with the features '
      'of the first points'
    )


def check_points(x: Any, sample_weight: Any = None) -> tuple[Any, Any]:
  """Checks points and weights as far as they are concrete.

  Args:
    x: `[N, D]` numbers.
    sample_weight: `[N]`, at least 0 and with a positive sum, or None.

  Returns:
    x as an array, and weights `[N]` in the dtype of the computation.

  Raises:
    InputError: for a wrong shape, NaN, infinity, numbers whose squares sum to
      more than floats hold, or weights out of range. Traced values are not
      looked at.
  """
  if getattr(x, 'dtype', None) is None:
    x = np.asarray(x)
  if x.ndim != 2 or 0 in x.shape:
    raise InputError(
      f'x has shape {tuple(x.shape)}: it must be [N, D], both at least 1'
    )
  kinds = (jnp.floating, jnp.integer, jnp.bool_)
  if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
    raise InputError(f'x is of dtype {x.dtype}: it must be real numbers')
  if x.dtype == np.float64 and not jax.config.jax_enable_x64:
    warnings.warn('x is float64 and is cast to float32', stacklevel=3)
  x = jnp.asarray(x)
  if not isinstance(x, jax.core.Tracer):
    _check_values(x)
  x, weight = as_arrays(x, sample_weight)
  if not isinstance(weight, jax.core.Tracer):
    _check_weights(weight)
  return x, weight


def check_rows(name: str, count: int, sample_weight: jax.Array) -> None:
  """Checks that concrete weights `[N]` leave at least `count` rows.

  Raises:
    InputError: if fewer are positive.
  """
  if isinstance(sample_weight, jax.core.Tracer):
    return
  positive = int((sample_weight > 0).sum())
  if positive < count:
    raise InputError(
      f'{name} is {count}, but only {positive} rows have a positive weight: '
      'ask for at most as many'
    )


@jax.jit
def _largest(x):
  return jnp.abs(as_float(x)).max()


def _check_values(x: jax.Array) -> None:
  largest = float(_largest(x))
  if not np.isfinite(largest):
    bad = np.argwhere(~np.isfinite(np.asarray(as_float(x))))
    row, column = bad[0]
    raise InputError(
      f'x has {len(bad)} values that are NaN or infinite, the first '
      f'({x[row, column]}) at row {row}, column {column}: '
      'remove those rows or fill them in'
    )
  dtype = float_dtype(x)
  bound = float(np.sqrt(float(jnp.finfo(dtype).max) / (4 * x.size)))
  if largest > bound:
    raise InputError(
      f'x reaches {largest:.3g}: beyond {bound:.3g} sums of squares overflow '
      f'{jnp.dtype(dtype).name}; divide x by a constant'
    )


def _check_weights(weight: jax.Array) -> None:
  values = np.asarray(weight)
  bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
  if bad.size:
    raise InputError(
      f'sample_weight[{bad[0]}] is {values[bad[0]]}, the first of {bad.size} '
      'that are: weights must be finite and at least 0'
    )
  if not values.sum() > 0:
    raise InputError(
      'sample_weight sums to 0: at least one weight must be above zero'
    )
  bound = float(np.sqrt(float(np.finfo(values.dtype).max)))
  if not values.sum(dtype=np.float64) <= bound:
    raise InputError(
      f'sample_weight sums to {values.sum(dtype=np.float64):.3g}: beyond '
      f'{bound:.3g} sums overflow; divide the weights by a constant'
    )

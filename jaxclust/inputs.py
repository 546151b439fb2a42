"""Arrays of the caller's: checked once, and placed for passes over their rows.

Axes: N rows, D features.
"""

import dataclasses
import functools
import os
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclust import checks, memory
from jaxclust.errors import InputError, RunError
from jaxclust.frames import (
  Frame,
  Sphere,
  as_float,
  as_readable,
  dot,
  float_dtype,
  unit_rows,
)
from jaxclust.programs import compiled
from jaxclust.rows import (
  SMALL,
  Rows,
  on_each_device,
  reduce_rows,
  scan_blocks,
)

METRICS = 'euclidean', 'cosine'

_Args = ParamSpec('_Args')
_Found = TypeVar('_Found')

# Smallest number of rows, and of clusters, after padding.
_LEAST_ROWS, LEAST_GROUPS = 256, 8

# Numbers of rows that are padded to the smallest number of rows.
_LEAST_NUMBERS = 2**16

# Bytes above which a memory-mapped file is streamed.
_MAPPED_BYTES = 2**28


# Whether arrays have been placed here, and in a process that this is a fork of.
_process = types.SimpleNamespace(works=False, is_fork=False)


def _note_fork():
  _process.is_fork = _process.works


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_note_fork)


def bucket(count: int, least: int = 1) -> int:
  """The first of `least` times 1, 1.5, 2, 3, 4, 6, ... not below count."""
  size = least
  while 2 * size < count:
    size *= 2
  return next(s for s in (size, size * 3 // 2, size * 2) if s >= count)


def padded_groups(num_groups: int, rows: Rows) -> int:
  """How many clusters are compiled for; small arrays share a few numbers."""
  if checks.is_traced(rows) or not rows.is_small:
    return num_groups
  return bucket(num_groups, LEAST_GROUPS)


def place(
  x: Any,
  sample_weight: Any = None,
  *,
  block_size: int | None = None,
  may_be_zero: bool = False,
) -> Rows:
  """Checks shapes and weights, and prepares passes over rows.

  Args:
    x: `[N, D]` real numbers: a JAX array of any sharding, or what NumPy takes.
      A NumPy array that exceeds half of a device's memory is streamed, and so
      is a large memory-mapped file. A small array is padded with rows of weight
      zero, which spares recompilation for another N.
    sample_weight: `[N]` or None.
    block_size: rows of a block; chosen by size if None.
    may_be_zero: whether all weights may be 0.

  Returns:
    The rows without a frame; `describe` finds one, and checks the values.

  Raises:
    InputError: for a wrong shape or dtype, or weights out of range.
    RunError: in a fork of a process that has placed arrays before.
  """
  if _process.is_fork:
    raise RunError(
      'this process is a fork of one in which JAX works, and would hang '
      "without its threads: start processes by 'spawn', or with joblib's loky"
    )
  _process.works = True
  x = checks.as_real('x', x)
  checks.check_shape(x)
  if block_size is not None:
    block_size = checks.check_count('block_size', block_size)
  if x.dtype == np.float64 and not jax.config.jax_enable_x64:
    checks.warn('x is float64 and is cast to float32')
  dtype = float_dtype(x)
  weight = sample_weight
  if weight is not None:
    weight = checks.check_weights(weight, len(x), dtype, may_be_zero)
  if checks.is_traced(x, weight):
    if weight is None:  # XLA would fold a constant, slowly
      weight = lax.optimization_barrier(jnp.ones(x.shape[0], dtype))
    return Rows(jnp.asarray(x), weight, block_size=block_size)
  if weight is None:
    weight = np.broadcast_to(np.ones((), dtype), x.shape[:1])  # of no size
  if isinstance(x, np.ndarray) and _is_large(x):
    return Rows(x, weight, block_size=block_size)
  if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
    return _place_sharded(x, weight, block_size)
  device = next(iter(x.devices())) if isinstance(x, jax.Array) else None
  num_padded = 0
  if x.size <= SMALL:
    least = max(1, min(_LEAST_ROWS, _LEAST_NUMBERS // x.shape[1]))
    num_padded = bucket(len(x), least) - len(x)
    with np.errstate(over='ignore'):  # `describe` reports infinities
      x = np.pad(np.asarray(x).astype(dtype), ((0, num_padded), (0, 0)))
    weight = np.pad(np.asarray(weight), (0, num_padded))
  x, weight = jax.device_put((as_readable(x), weight), device)
  return Rows(x, weight, block_size=block_size, num_padded=num_padded)


def _place_sharded(x, weight, block_size):
  """Rows of a mesh, whatever the layout was."""
  mesh = getattr(x.sharding, 'mesh', None)
  spec = (*getattr(x.sharding, 'spec', ()), None, None)[:2]
  if mesh is None or spec[1] is not None:
    devices = sorted(x.sharding.device_set, key=lambda device: device.id)
    mesh, spec = Mesh(np.array(devices), ('rows',)), ('rows', None)
    if len(x) % mesh.size:
      raise InputError(
        f'x is sharded by features, and its {len(x)} rows cannot be shared '
        f'evenly by {mesh.size} devices: shard it by rows'
      )
  axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
  axes = tuple(axis for axis in axes if axis is not None)
  by_rows = NamedSharding(mesh, PartitionSpec(axes))
  x = jax.device_put(x, by_rows)
  weight = jax.make_array_from_callback(
    weight.shape, by_rows, lambda index: weight[index]
  )
  return Rows(x, weight, mesh=mesh, axes=axes, block_size=block_size)


def _is_large(x):
  if isinstance(x, np.memmap):
    return x.nbytes > _MAPPED_BYTES
  return x.nbytes > memory.device_bytes() / 2


def prepare(
  check: Callable,
  groups: str,
  x: Any,
  sample_weight: Any,
  block_size: int | None,
  **options: Any,
) -> Rows:
  """Rows of a fit in their frame, once they and its options are checked.

  `check(N, D, **options)` raises an InputError; `groups` is the option that
  holds the number of clusters or components. The rest is as for `place`.
  """
  x = checks.as_real('x', x)
  rows = place(x, sample_weight, block_size=block_size)
  if isinstance(x, np.ndarray):
    checks.check_digits(x, rows.dtype)
  check(rows.shape[0] - rows.num_padded, rows.shape[1], **options)
  if not checks.is_traced(rows.weight):
    lib = jnp if rows.axes else np
    positive = int(lib.count_nonzero(lib.asarray(rows.weight) > 0))
    if positive < options[groups]:
      raise InputError(
        f'{groups} is {options[groups]}, but only {positive} rows have a '
        'positive weight: ask for at most as many'
      )
  return describe(rows, options.get('metric', 'euclidean'))


def describe(rows: Rows, metric: str = 'euclidean') -> Rows:
  """Checks the values of rows, and finds a frame in which the metric is the
  distance, in two passes.

  Raises:
    InputError: for NaN, infinity, or numbers whose squares sum to more than
      floats hold. Traced values are not checked.
  """
  if _are_few(rows):
    frame = _frame_of_few(check_values(rows), metric)
    return dataclasses.replace(rows, frame=frame)
  largest, offset, reach = _look(rows, metric)
  if not checks.is_traced(largest):
    checks.check_largest(rows.x, float(largest), rows.dtype)
  frame = _find_frame(rows, metric, offset, reach)
  return dataclasses.replace(rows, frame=frame)


def _are_few(rows):
  """Whether NumPy looks at rows sooner than XLA compiles a pass over them."""
  elsewhere = rows.axes or rows.is_streamed or checks.is_traced(rows)
  return rows.is_small and not elsewhere


def _frame_of_few(rows, metric):
  """`_find_frame` in NumPy's float64; rows are taken about one of them, so that
  equal ones have no variance."""
  x, weight = (np.asarray(a).astype(np.float64) for a in (rows.x, rows.weight))
  x, weight = x[weight > 0], weight[weight > 0]
  if metric == 'cosine':
    x = unit_rows(x, np)
  origin, total = x[0], weight.sum()
  x = x - origin
  mean = weight @ x / total
  scale = np.sqrt(weight @ np.square(x - mean).mean(axis=1) / total)
  scale = scale if scale >= np.finfo(rows.dtype).tiny else 1
  offset, scale = (np.asarray(a, rows.dtype) for a in (origin + mean, scale))
  return Sphere(scale) if metric == 'cosine' else Frame(offset, scale)


def check_values(rows: Rows) -> Rows:
  """Returns rows as they are once their values are checked, in one pass.

  Raises:
    InputError: as `describe` does.
  """
  if checks.is_traced(rows):
    return rows
  if jnp.issubdtype(rows.x.dtype, jnp.floating):
    if _are_few(rows):
      largest = np.abs(np.asarray(rows.x)).max()
    else:
      largest, *_ = _look(rows, 'euclidean')
    checks.check_largest(rows.x, float(largest), rows.dtype)
  return rows


@functools.partial(compiled, static=(1,))
def _look(rows, metric):
  """The largest magnitude in x, the mean `[D]` of what a metric sees of rows,
  and how far it reaches from there.

  Sums are of differences from one of the rows: an offset costs no digits.
  """
  view = unit_rows if metric == 'cosine' else as_float

  def look(_, here):
    origin = view(jnp.asarray(as_readable(here.x[(here.weight > 0).argmax()])))
    zero = jnp.zeros((), origin.dtype)
    carry = jnp.zeros_like(origin), zero, zero, zero
    found, _ = scan_blocks(_look_at_block, view, origin, carry, here, (), 0)
    return (), jax.tree.map(lambda a: a[None], (origin, *found))

  _, seen = on_each_device(look, (), rows)
  origins, totals, weights, largest, spreads = seen
  origin = origins[0]
  moved = weights[:, None] * (origins - origin[None]) + totals
  offset = origin + moved.sum(axis=0) / weights.sum()
  reach = spreads + jnp.abs(origins - offset[None]).max(axis=1)
  reach = jnp.where(weights > 0, reach, 0).max()
  return largest.max(), offset, jnp.where(reach > 0, reach, 1)


@functools.partial(compiled, static=(1,))
def _find_frame(rows, metric, offset, reach):
  """The frame of the data; squares are of numbers of at most about 1."""
  inside, center = Frame(offset, reach), jnp.zeros_like(offset)
  if metric == 'cosine':
    inside, center = Sphere(jnp.ones_like(reach)), offset
  squares = reduce_rows(
    _squares_about, center, dataclasses.replace(rows, frame=inside)
  )
  variance = squares / rows.weight.sum()
  scale = inside.scale * jnp.sqrt(jnp.where(variance > 0, variance, 1))
  return inside._replace(scale=scale)


def _look_at_block(view, origin, frame, carry, fresh, x, weight):
  del frame
  total, mass, largest, spread = carry
  weight = jnp.where(fresh, weight, 0)
  difference = jnp.where(weight[:, None] > 0, view(x) - origin[None], 0)
  numbers = as_float(x)
  # On a CPU the maximum of many numbers may miss a NaN, but no infinity.
  magnitude = jnp.where(jnp.isfinite(numbers), jnp.abs(numbers), jnp.inf)
  return (
    total + dot(weight, difference),
    mass + weight.sum(),
    jnp.maximum(largest, magnitude.max()),
    jnp.maximum(spread, jnp.abs(difference).max()),
  ), ()


def _squares_about(center, x, weight):
  return dot(weight, jnp.square(x - center[None]).mean(axis=1))


def weighted_sum(sample_weight: Any, values: jax.Array) -> jax.Array:
  """The sum of values `[N]` times weights `[N]`, which are 1 if None.

  Raises:
    InputError: if the weights are out of range.
  """
  if sample_weight is None:
    return values.sum()
  weight = checks.check_weights(sample_weight, len(values), values.dtype)
  return dot(weight, values)


def on_any_mesh(fn: Callable[_Args, _Found]) -> Callable[_Args, _Found]:
  """Lets a function take arrays whose mesh has Explicit axes.

  The function itself sees Auto axes, and what it returns lies on the Explicit
  ones again.
  """

  @functools.wraps(fn)
  def call(*args, **kwargs):
    arrays = jax.tree.leaves((args, kwargs))
    mesh = next(filter(None, map(_explicit_mesh, arrays)), None)
    if mesh is None:
      return fn(*args, **kwargs)
    args, kwargs = jax.tree.map(_to_auto, (args, kwargs))
    with jax.set_mesh(Mesh(np.empty((), object), ())):
      outputs = fn(*args, **kwargs)
    return jax.tree.map(functools.partial(_to_explicit, mesh), outputs)

  return call


def _explicit_mesh(array):
  """The mesh of a concrete array, if it has Explicit axes, else None."""
  if not isinstance(array, jax.Array) or checks.is_traced(array):
    return None
  mesh = getattr(array.sharding, 'mesh', None)
  explicit = mesh is not None and AxisType.Explicit in mesh.axis_types
  return mesh if explicit else None


def _to_auto(array):
  mesh = _explicit_mesh(array)
  if mesh is None:
    return array
  mesh = Mesh(mesh.devices, mesh.axis_names)
  return jax.device_put(array, NamedSharding(mesh, array.sharding.spec))


def _to_explicit(mesh, array):
  if not isinstance(array, jax.Array):
    return array
  spec = getattr(array.sharding, 'spec', PartitionSpec())
  return jax.device_put(array, NamedSharding(mesh, spec))

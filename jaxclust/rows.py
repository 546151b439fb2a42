"""Rows of numbers, wherever they lie, and passes over them.

Rows `[N, D]` are an array on one device, an array sharded over the devices of a
mesh, or an array on the host that is streamed. A pass reads them in blocks
`[B, D]`, in a frame in which they are centered and of order one. No other
module knows about blocks, devices of rows, or streams.

Axes: N rows, D features, B rows of a block, S selections, C rows of each.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxclust.frames import Frame, Sphere, as_float, as_readable, float_dtype
from jaxclust.prefetch import ahead

# Numbers of a block and of what a pass computes from it: about the cache of a
# CPU, or enough rows to keep an accelerator busy.
_CPU_BLOCK, _ACCELERATOR_BLOCK = 2**19, 2**25

# Numbers of an array that counts as small: it is padded to one of a few sizes,
# and read in one block.
SMALL = 2**20

# Bytes of a part of a stream, which is sent to the device at once.
_STREAM_BYTES = 2**26


# Of a field that is a constant of a program.
_STATIC = {'static': True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Weighted rows and how a pass reads them."""

  x: Any  # [N, D] in the data's units; of NumPy if the rows are streamed
  weight: Any  # [N] 0 for padding
  frame: Frame | Sphere | None = None  # None: as they are
  mesh: Mesh | None = dataclasses.field(default=None, metadata=_STATIC)
  axes: tuple[str, ...] = dataclasses.field(default=(), metadata=_STATIC)
  block_size: int | None = dataclasses.field(default=None, metadata=_STATIC)
  num_padded: int = 0  # rows of weight zero at the end

  @property
  def shape(self) -> tuple[int, int]:
    return self.x.shape

  @property
  def dtype(self) -> Any:
    """The dtype of what is computed from the rows."""
    return float_dtype(self.x)

  @property
  def is_streamed(self) -> bool:
    return isinstance(self.x, np.ndarray)

  @property
  def is_small(self) -> bool:
    return self.x.size <= SMALL

  def in_frame(self, x: jax.Array) -> jax.Array:
    """Maps some of the rows, `[B, D]`, into the frame."""
    return as_float(x) if self.frame is None else self.frame.apply(x)

  def enter_frame(self) -> 'Rows':
    """Returns the rows with x in the frame, if they are few.

    For a loop of passes: each then reads the same numbers, and distances of
    equal rows are exactly zero.
    """
    if self.is_streamed or not self.is_small:
      return self
    return dataclasses.replace(self, x=self.in_frame(self.x), frame=None)

  def trim(self, outputs: Any) -> Any:
    """Drops what belongs to padding from outputs `[N, ...]` of a pass."""
    if not self.num_padded:
      return outputs
    count = self.shape[0] - self.num_padded
    trimmed = jax.tree.map(lambda a: np.asarray(a)[:count], outputs)
    return jax.device_put(trimmed)  # compiles nothing, unlike jnp.asarray


def reduce_rows(
  fn: Callable, params: Any, rows: Rows, *columns: Any, width: int = 0
) -> Any:
  """Sums `fn(params, x [B, D], weight [B], *columns)` over all rows.

  Args:
    fn: returns a pytree of sums; x is in the frame, zero where the weight is.
      For rows that are streamed it is compiled once for each function object.
    params: a pytree that all blocks see.
    rows: N rows.
    columns: arrays `[N, ...]`, whose blocks come beside x.
    width: numbers that a row takes beside its D.
  """

  def reduce_here(params, here, *columns):
    shapes = _shapes_of_block(fn, params, here, columns, with_weight=True)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return scan_blocks(_sum_block, fn, params, zeros, here, columns, width)

  return on_each_device(reduce_here, params, rows, *columns)[0]


def scan_rows(
  fn: Callable, params: Any, rows: Rows, *columns: Any, width: int = 0
) -> tuple[Any, Any]:
  """Sums and outputs of `fn(params, x [B, D], weight [B], *columns)`.

  The function returns sums as for `reduce_rows`, and outputs as for `map_rows`;
  so does this.
  """

  def scan_here(params, here, *columns):
    shapes, _ = _shapes_of_block(fn, params, here, columns, with_weight=True)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return scan_blocks(_scan_block, fn, params, zeros, here, columns, width)

  return on_each_device(scan_here, params, rows, *columns)


def map_rows(
  fn: Callable, params: Any, rows: Rows, *columns: Any, width: int = 0
) -> Any:
  """Applies `fn(params, x [B, D], *columns)` to all rows.

  The function returns a pytree of `[B, ...]`; the outputs `[N, ...]` lie where
  the rows lie. Arguments as for `reduce_rows`.
  """

  def map_here(params, here, *columns):
    return scan_blocks(_map_block, fn, params, (), here, columns, width)

  return on_each_device(map_here, params, rows, *columns)[1]


def top_rows(
  fn: Callable, params: Any, rows: Rows, *columns: Any, count: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Selects the rows of the largest scores, S times.

  Args:
    fn: `(params, weight [B], *columns) -> scores [S, B]`.
    params: and those that follow, as for `reduce_rows`.
    count: C rows of each selection; a selection of more than N repeats rows
      with a score of -inf.

  Returns:
    Scores `[S, C]`, falling, and the rows `[S, C, D]` in the frame.
  """

  def select_here(params, here, *columns):
    shape = _shapes_of_block(fn, params, here, columns, with_weight=None)
    scores = jnp.full((shape.shape[0], count), -jnp.inf, shape.dtype)
    x = jnp.zeros((*scores.shape, here.shape[1]), here.dtype)
    best, _ = scan_blocks(_top_block, fn, params, (scores, x), here, columns, 0)
    return (), jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), best)

  _, best = on_each_device(select_here, params, rows, *columns)
  scores, x = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), best)
  if scores.shape[1] > count:  # those of each device
    scores, place = lax.top_k(scores, count)
    x = jnp.take_along_axis(x, place[..., None], axis=1)
  return scores, x


def _read(frame, x, weight):
  """A block in the frame, with zeros in place of rows of weight zero."""
  x = as_float(x) if frame is None else frame.apply(x)
  return jnp.where(weight[:, None] > 0, x, 0)


def _sum_block(fn, *args):
  return _scan_block(lambda *seen: (fn(*seen), ()), *args)


def _scan_block(fn, params, frame, total, fresh, x, weight, *columns):
  part, outputs = fn(
    params, _read(frame, x, weight), jnp.where(fresh, weight, 0), *columns
  )
  return jax.tree.map(jnp.add, total, part), outputs


def _map_block(fn, params, frame, carry, fresh, x, weight, *columns):
  del fresh
  return carry, fn(params, _read(frame, x, weight), *columns)


def _top_block(fn, params, frame, best, fresh, x, weight, *columns):
  scores = jnp.where(fresh[None], fn(params, weight, *columns), -jnp.inf)
  count = best[0].shape[1]
  if count == 1:
    scores, place = _largest(scores)
  else:
    scores, place = lax.top_k(scores, min(count, scores.shape[1]))
  found = _read(frame, x[place.reshape(-1)], jnp.ones(place.size))
  found = found.reshape(*place.shape, -1)
  if count == 1:
    is_better = scores > best[0]
    x = jnp.where(is_better[..., None], found, best[1])
    return (jnp.maximum(scores, best[0]), x), ()
  scores, x = (
    jnp.concatenate(pair, axis=1)
    for pair in zip(best, (scores, found), strict=True)
  )
  scores, place = lax.top_k(scores, count)
  return (scores, jnp.take_along_axis(x, place[..., None], axis=1)), ()


def _largest(scores):
  """The largest of each row of `[S, B]`, and its first place, `[S, 1]`.

  A plain maximum and a plain minimum vectorise where XLA's argmax does not.
  """
  best = scores.max(axis=1, keepdims=True)
  number = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  last = scores.shape[1] - 1
  place = jnp.where(scores == best, number, last).min(axis=1, keepdims=True)
  return best, place


def _shapes_of_block(fn, params, rows, columns, with_weight):
  """The shapes of what `fn` makes of two rows."""
  like = lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype)  # noqa: E731
  x = jax.ShapeDtypeStruct((2, rows.shape[1]), rows.dtype)
  weight = jax.ShapeDtypeStruct((2,), rows.dtype)
  seen = (x, weight) if with_weight else (weight,)
  return jax.eval_shape(fn, params, *seen, *jax.tree.map(like, columns))


def take_rows(rows: Rows, index: jax.Array) -> jax.Array:
  """The rows `[B, D]` at an index `[B]`, in the data's units."""
  if rows.is_streamed:
    return jnp.asarray(as_readable(rows.x[np.asarray(index)]))
  if not rows.axes:
    return rows.x[index]

  def take_here(index, here):
    place = index - lax.axis_index(rows.axes) * here.shape[0]
    inside = (place >= 0) & (place < here.shape[0])
    x = as_float(here.x[jnp.where(inside, place, 0)])
    return jnp.where(inside[:, None], x, 0), ()

  return on_each_device(take_here, index, rows)[0]


def cumulate(rows: Rows, column: jax.Array) -> jax.Array:
  """Cumulative sums `[N]` of a column `[N]` beside the rows.

  Each device sums its own rows: XLA would exchange all N numbers instead.
  """
  if rows.is_streamed:
    return np.cumsum(column, dtype=column.dtype)

  def total(_, here, column):
    return (), column.sum(dtype=column.dtype)[None]

  def cumulate_here(_, here, column, before):
    return (), before + jnp.cumsum(column)

  _, totals = on_each_device(total, (), rows, column)
  before = jnp.cumsum(totals) - totals
  return on_each_device(cumulate_here, (), rows, column, before)[1]


def on_each_device(
  fn: Callable, params: Any, rows: Rows, *columns: Any
) -> tuple[Any, Any]:
  """Runs `fn(params, rows, *columns) -> sums, outputs` where the rows lie.

  Each device sees its own rows and columns. Sums are added over devices;
  outputs `[N, ...]` stay where they are.
  """
  if not rows.axes:
    return fn(params, rows, *columns)
  whole, shared = PartitionSpec(), PartitionSpec(rows.axes)

  def run(params, here, columns):
    here = dataclasses.replace(here, mesh=None, axes=())
    sums, outputs = fn(params, here, *columns)
    return lax.psum(sums, rows.axes), outputs

  specs = dataclasses.replace(
    rows, x=shared, weight=shared, frame=whole, num_padded=whole
  )
  return jax.shard_map(
    run,
    mesh=rows.mesh,
    in_specs=(whole, specs, shared),
    out_specs=(whole, shared),
    check_vma=False,
  )(params, rows, columns)


def scan_blocks(
  body: Callable,
  fn: Callable,
  params: Any,
  carry: Any,
  rows: Rows,
  columns: Sequence[jax.Array],
  width: int,
) -> tuple[Any, Any]:
  """Walks over the rows of one device, or of a stream, in blocks.

  On a device the last block starts early enough to be whole, so that it repeats
  rows of the block before: `fresh` is False for those.

  The body is `(fn, params, frame, carry, fresh [B], x [B, D], weight [B],
  *columns) -> carry, outputs [B, ...]`, with x in the data's units. Returns the
  last carry, and the outputs `[N, ...]`. Arguments as for `reduce_rows`.
  """
  if rows.is_streamed:
    return _scan_stream(body, fn, params, carry, rows, columns, width)
  num_rows = rows.shape[0]
  size = block_rows(num_rows, rows.shape[1] + width, rows.block_size)
  columns = rows.x, rows.weight, *columns
  visit = functools.partial(body, fn, params, rows.frame)
  if size is num_rows or size == num_rows:
    return visit(carry, jnp.ones(num_rows, bool), *columns)

  def block(i):
    start = jnp.minimum(i * size, num_rows - size)
    fresh = start + jnp.arange(size) >= i * size
    cut = functools.partial(
      lax.dynamic_slice_in_dim, start_index=start, slice_size=size
    )
    return start, fresh, *jax.tree.map(cut, columns)

  def visit_next(i, state):
    carry, written = state
    start, *rows = block(i)
    carry, outputs = visit(carry, *rows)
    written = jax.tree.map(
      lambda a, o: lax.dynamic_update_slice_in_dim(a, o, start, 0),
      written,
      outputs,
    )
    return carry, written

  _, outputs = jax.eval_shape(lambda: visit(carry, *block(0)[1:]))
  written = jax.tree.map(
    lambda o: jnp.zeros((num_rows, *o.shape[1:]), o.dtype), outputs
  )
  return lax.fori_loop(0, -(-num_rows // size), visit_next, (carry, written))


# `scan_blocks` of a part of a stream, compiled once for each body and function.
_scan_part = jax.jit(scan_blocks, static_argnums=(0, 1, 6))


def block_rows(num_rows: int, width: int, block_size: int | None = None) -> int:
  """Rows of a block whose rows take `width` numbers each, at most num_rows.

  A number of rows that is a symbol, as in an export, is one block.
  """
  if not isinstance(num_rows, int):
    return num_rows
  if block_size is None:
    on_cpu = jax.default_backend() == 'cpu'
    budget = _CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK
    block_size = max(256, budget // max(1, width))
  return max(1, min(num_rows, block_size))


def _scan_stream(body, fn, params, carry, rows, columns, width):
  """`scan_blocks` of rows on the host; the last part sent is padded."""
  num_rows, num_features = rows.shape
  size = max(1, _STREAM_BYTES // (4 * num_features))
  size = min(max(size, rows.block_size or 1), num_rows)

  def send(start):
    part = [a[start : start + size] for a in (rows.x, rows.weight, *columns)]
    part[0] = as_readable(part[0])
    missing = size - len(part[0])
    if missing:
      part = [np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for a in part]
    return jax.device_put(part)

  found = []
  for x, weight, *rest in ahead(range(0, num_rows, size), send):
    part = dataclasses.replace(rows, x=x, weight=weight)
    carry, outputs = _scan_part(body, fn, params, carry, part, rest, width)
    found.append(jax.tree.map(np.asarray, outputs))
  return carry, jax.tree.map(lambda *p: np.concatenate(p)[:num_rows], *found)

"""Images on the device, or streamed to it from the host.

Where images lie tells how they are read: an array of JAX is on the device and
is used as it is; one of NumPy, which may be a file mapped into memory, comes
part by part through Grain, gathered and sent ahead while the device works on
the part before.

Axes: N images, R runs, S steps, B batch, H height, W width, C channels.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import data
from jaxclust.numerics import InputError

PLACEMENTS = ('auto', 'device', 'host')

# Threads that gather parts, and parts that wait on the device.
_AHEAD = 2

# Of images read in order, sent at once.
_BLOCK_BYTES = 2**26


def check_placement(placement: str) -> None:
  """Checks a placement.

  Raises:
    InputError: if it is unknown.
  """
  if placement not in PLACEMENTS:
    raise InputError(
      f'placement is {placement!r}: it must be one of {", ".join(PLACEMENTS)}'
    )


def place(
  images: Sequence[np.ndarray], placement: str
) -> list[jax.Array | np.ndarray]:
  """Puts arrays of images on the device, or leaves them on the host.

  Args:
    images: arrays `[N, H, W, C]`.
    placement: 'device', 'host', or 'auto' for the host if they would fill more
      than half of a device's memory; devices that are cores share the host's.

  Returns:
    Arrays of JAX on the device, of NumPy on the host.
  """
  if placement == 'auto':
    total = sum(array.nbytes for array in images)
    placement = 'device' if total <= _device_bytes() / 2 else 'host'
  convert = jnp.asarray if placement == 'device' else np.asarray
  return [convert(array) for array in images]


def _device_bytes():
  devices = jax.devices()
  stats = devices[0].memory_stats()
  if stats is not None:
    return stats['bytes_limit']
  return data.host_bytes() / len(devices)


def batches(
  images: jax.Array | np.ndarray,
  parts: Sequence[jax.Array],
  put: Callable = jax.device_put,
) -> Iterator[tuple[jax.Array, jax.Array]]:
  """Brings the images of each part of an epoch to the device.

  Args:
    images: `[N, H, W, C]`.
    parts: rows `[R, S, B]` of the images in the batches of S steps; -1 where a
      batch is not full.
    put: takes a pytree of arrays to where the batches are used.

  Yields:
    For each part images on the device and the rows among them.
  """
  if isinstance(images, jax.Array):
    yield from ((images, put(rows)) for rows in parts)
    return

  def send(rows):
    rows = np.asarray(rows)
    own = np.arange(rows.size, dtype=rows.dtype).reshape(rows.shape)
    pool = images[np.maximum(rows, 0).reshape(-1)]
    return put((pool, np.where(rows < 0, -1, own)))

  yield from _ahead(parts, send)


def blocks(images: jax.Array | np.ndarray) -> Iterator[jax.Array]:
  """Brings images `[N, H, W, C]` to the device in order, in blocks."""
  if isinstance(images, jax.Array):
    yield images
    return
  if images.nbytes <= _BLOCK_BYTES:
    yield jax.device_put(images)
    return
  size = max(1, _BLOCK_BYTES // max(1, images[:1].nbytes))
  starts = range(0, len(images), size)
  yield from _ahead(
    starts, lambda start: jax.device_put(images[start : start + size])
  )


def _ahead(items, fn):
  """Yields `fn` of each item in order, computed ahead in threads."""
  import grain  # a second to import, and only needed here

  dataset = grain.MapDataset.source(items).map(fn)
  options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
  yield from dataset.to_iter_dataset(options)

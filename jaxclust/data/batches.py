"""Images of an epoch: their order, and their way to the devices.

Images of JAX lie on a device and are used as they are. Those of NumPy, which
may be a file mapped into memory, are gathered and sent part by part, ahead of
the device.

Axes: N images, R runs, S steps, B batch, H height, W width, C channels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclust import memory, processes
from jaxclust.prefetch import ahead

PLACEMENTS = ('auto', 'device', 'host')


def place(
  images: Sequence[np.ndarray], placement: str
) -> list[jax.Array | np.ndarray]:
  """Puts arrays of images on the device, or leaves them on the host.

  Args:
    images: arrays `[N, H, W, C]`.
    placement: 'device', 'host', or 'auto' for the host if they would fill more
      than half of a device's memory.

  Returns:
    Arrays of JAX on the device, of NumPy on the host.
  """
  if placement == 'auto':
    total = sum(array.nbytes for array in images)
    fits = processes.first_says(total <= memory.device_bytes() / 2)
    placement = 'device' if fits else 'host'
  convert = jnp.asarray if placement == 'device' else np.asarray
  return [convert(array) for array in images]


def steps_per_epoch(
  num_images: int, batch_size: int, only_whole: bool = False
) -> int:
  """Steps in which every image is seen once; the last may be smaller.

  With `only_whole`, what does not fill a batch is left out.
  """
  return (
    num_images if only_whole else num_images + batch_size - 1
  ) // batch_size


def draw_held_out(key: jax.Array, num_images: int, share: float) -> np.ndarray:
  """A mask `[N]` of that share of the images, drawn at random."""
  count = int(share * num_images)
  mask = np.zeros(num_images, bool)
  mask[np.asarray(jax.random.permutation(key, num_images))[:count]] = True
  return mask


def draw_order(
  keys: jax.Array,
  epoch: jax.Array,
  images: jax.Array,
  batch_size: int,
  only_whole: bool = False,
) -> jax.Array:
  """The order of an epoch for each key `[R]`.

  Args:
    keys: of the runs' orders.
    epoch: its number.
    images: `[N]` int32, the numbers of the images to be seen.
    batch_size: B.
    only_whole: as for `steps_per_epoch`.

  Returns:
    Numbers `[R, S, B]` of the images in each batch; -1 where the last is not
    full.
  """
  num_batches = steps_per_epoch(len(images), batch_size, only_whole)
  size = num_batches * batch_size

  def order(key):
    drawn = jax.random.permutation(jax.random.fold_in(key, epoch), images)
    missing = (0, max(0, size - len(images)))
    drawn = jnp.pad(drawn, missing, constant_values=-1)[:size]
    return drawn.reshape(num_batches, batch_size)

  return jax.vmap(order)(keys)


def batches(
  images: jax.Array | np.ndarray, parts: Sequence[jax.Array], mesh: Mesh
) -> Iterator[tuple[Any, jax.Array, jax.Array]]:
  """Brings the images of each part of an epoch to the devices.

  Args:
    images: `[N, H, W, C]`, those of JAX on all devices of the mesh.
    parts: numbers `[R, S, B]` of the images in the batches of S steps; -1 where
      a batch is not full.
    mesh: the devices that share each batch.

  Yields:
    For each part images, the places `[R, S, B]` of the batches' images among
    these, and the numbers `[R, S, B]` of the images. Images of NumPy are sent
    to the device whose share of a batch they are in, and no others are read;
    places are those on that device, and B is a multiple of the devices.
  """
  by_images = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

  if isinstance(images, jax.Array):
    for part in parts:
      numbers = processes.replicate(mesh, part)
      yield images, numbers, numbers
    return

  def send(part):
    missing = (0, 0), (0, 0), (0, -part.shape[2] % mesh.size)
    part = np.pad(np.asarray(part), missing, constant_values=-1)
    shares = np.stack(np.split(part, mesh.size, axis=2))  # [devices, R, S, B]
    wanted = np.maximum(shares, 0).reshape(-1)
    pool = jax.make_array_from_callback(
      (len(wanted), *images.shape[1:]),
      by_images,
      lambda index: images[wanted[index[0]]],
    )
    place = np.arange(shares[0].size, dtype=part.dtype).reshape(shares[0].shape)
    place = np.where(part < 0, -1, np.tile(place, mesh.size))
    return pool, *processes.replicate(mesh, (place, part))

  yield from ahead(parts, send)

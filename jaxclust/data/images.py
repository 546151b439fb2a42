"""Arrays of images: their checks, sizes, channels and memory.

Axes: N images of the training split, M of the test split, H rows, W columns,
C channels.
"""

import contextlib
import hashlib
from typing import NamedTuple

import numpy as np

from jaxclust.checks import check_count, warn
from jaxclust.errors import InputError, one_line
from jaxclust.memory import host_bytes


class Dataset(NamedTuple):
  """An image set; a field that the source does not have is None or empty."""

  name: str
  images: np.ndarray  # [N, H, W, C] uint8, or float32 from an .npz or .npy
  labels: np.ndarray | None = None  # [N]
  test_images: np.ndarray | None = None  # [M, H, W, C]
  test_labels: np.ndarray | None = None  # [M]
  label_names: tuple[str, ...] = ()  # label_names[i] is the name of label i
  files: tuple[str, ...] = ()  # [N + M], relative paths of a folder's images
  left_out: tuple[tuple[str, str], ...] = ()  # a path there, and why


def digest(dataset):
  """Returns a SHA-256, in hex, of the arrays: names, types, shapes, values."""
  sha = hashlib.sha256()
  for field, array in dataset._asdict().items():
    if isinstance(array, np.ndarray):
      sha.update(f'{field} {array.dtype.str} {array.shape} '.encode())
      sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return sha.hexdigest()


def with_channels(dataset, channels):
  """Returns a dataset whose images have the given number of channels.

  One channel is repeated to make three; three equal channels become one.

  Raises:
    InputError: any other conversion would be needed.
  """
  for field in ('images', 'test_images'):
    images = getattr(dataset, field)
    found = channels if images is None else images.shape[3]
    if found == channels:
      continue
    if (found, channels) == (1, 3):
      images = np.repeat(images, 3, axis=3)
    elif (found, channels) == (3, 1) and (images == images[..., :1]).all():
      images = images[..., :1]
    else:
      raise InputError(
        f'{field} have {found} channels, and {channels} are needed: convert '
        'them; only grey images are converted between 1 and 3 channels here'
      )
    dataset = dataset._replace(**{field: images})
  return dataset


def as_size(size):
  """Returns (height, width), or None if images keep their size.

  Args:
    size: (height, width), one number for both, or None or () for no resizing.

  Raises:
    InputError: the size is neither of these.

  >>> as_size(32)
  (32, 32)
  """
  if size in (None, (), []):
    return None
  sides = size if isinstance(size, tuple | list) else (size,)
  for side in sides:
    check_count('each of config.data.size', side)
  if len(sides) > 2:
    raise InputError(
      f'config.data.size is {size!r}: it must be (height, width), or one '
      'number for both'
    )
  return sides[0], sides[-1]


def check_memory(what, num_bytes):
  """Raises an InputError if an array would fill more than half the memory."""
  bound = host_bytes() / 2
  if num_bytes > bound:
    raise InputError(
      f'{what} unpacks to {num_bytes / 2**30:.3g} GiB, but half of the memory '
      f'is {bound / 2**30:.3g} GiB: give fewer or smaller images'
    )


@contextlib.contextmanager
def reading(path, kind, remedy):
  """Turns any error of a reader into an InputError that names the path."""
  try:
    yield
  except InputError:
    raise
  # A damaged file can fail in any layer of a reader, with any exception.
  except Exception as error:
    raise InputError(
      f'{path} cannot be read as {kind} ({one_line(error)}): {remedy}'
    ) from error


def read_npz(path, remedy='write it with numpy.savez'):
  """Returns the arrays of an .npz file by key.

  Raises:
    InputError: the file is missing, damaged or too large for the memory, or
      one of its members is not an array.
  """
  with (
    reading(path, '.npz', remedy),
    # Opened here because np.load does not close a truncated file.
    open(path, 'rb') as file,
    np.load(file, allow_pickle=False) as arrays,
  ):
    check_memory(path, sum(m.file_size for m in arrays.zip.infolist()))
    arrays = {key: arrays[key] for key in arrays.files}
  for key, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise InputError(f'{key} of {path} is not an array: {remedy}')
  return arrays


def checked(dataset, size):
  """Returns a dataset with the shapes and dtypes that `Dataset` states.

  Its images may lack the axis C and be any float; they are resized to a size
  (height, width), unless it is None.

  Raises:
    InputError: images or labels cannot be used.
  """
  for split in ('', 'test_'):
    images = getattr(dataset, f'{split}images')
    if images is not None:
      images = _checked(f'{split}images of {dataset.name}', images, size)
      dataset = dataset._replace(**{f'{split}images': images})
    labels = getattr(dataset, f'{split}labels')
    if labels is not None:
      _check_labels(f'{split}labels of {dataset.name}', labels, images)
  shape, test_images = dataset.images.shape[1:], dataset.test_images
  if test_images is not None and test_images.shape[1:] != shape:
    raise InputError(
      f'test_images of {dataset.name} have shape {test_images.shape[1:]} each, '
      f'but images have {shape}: give both splits the same channels, and one '
      'size with --config.data.size=(H, W)'
    )
  return dataset


def _checked(what, images, size):
  if images.ndim not in (3, 4):
    raise InputError(
      f'{what} have shape {images.shape}: expected [N, H, W] or [N, H, W, C]'
    )
  check_channels_last(what, images)
  if not images.size:
    raise InputError(
      f'{what} have shape {images.shape}, an empty split: give some images'
    )
  if images.dtype.kind == 'f':
    images = _as_float32(what, images)
  elif images.dtype != np.uint8:
    raise InputError(
      f'{what} are {images.dtype}: convert them to uint8 or float32'
    )
  images = images if images.ndim == 4 else images[..., None]
  if size in (None, images.shape[1:3]):
    return images
  item = np.dtype((images.dtype, (*size, images.shape[3])))
  check_memory(what, len(images) * item.itemsize)
  return np.fromiter((resize(i, size) for i in images), item, len(images))


def check_channels_last(what, images):
  """Raises an InputError if images `[N, C, H, W]` have channels first."""
  shape = images.shape[1:]
  if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 4:
    raise InputError(
      f'{what} have shape {images.shape}, with channels first: give '
      '[N, H, W, C], as images.transpose(0, 2, 3, 1) does'
    )


def _as_float32(what, images):
  with np.errstate(over='ignore'):  # overflow is reported as not finite
    cast = images.astype(np.float32, copy=False)
  bad = ~np.isfinite(cast)
  if bad.any():
    first = [int(i) for i in np.unravel_index(bad.argmax(), bad.shape)]
    raise InputError(
      f'{what} have {bad.sum()} values that are not finite in float32, the '
      f'first at {first}: repair or remove these images'
    )
  if images.dtype.itemsize > 4:
    warn(f'{what} are {images.dtype} and are cast to float32')
  return cast


def resize(image, size):
  """Returns an image `[H, W, C]`, uint8 or float32, in a size (height, width).

  A triangular filter, two pixels of the coarser grid wide, prevents aliasing.
  Its weights are positive, so that values stay within the range of the image.
  """
  from PIL import Image

  if image.shape[:2] == size:
    return image
  planes = [Image.fromarray(plane) for plane in np.moveaxis(image, 2, 0)]
  filtered = [p.resize(size[::-1], Image.Resampling.BILINEAR) for p in planes]
  return np.stack(filtered, axis=2)


def _check_labels(what, labels, images):
  if images is None:
    raise InputError(f'{what} come without their images: add test_images')
  if labels.shape != images.shape[:1]:
    raise InputError(
      f'{what} have shape {labels.shape}: {len(images)} images need '
      f'({len(images)},)'
    )
  if labels.dtype.kind not in 'iuU':
    raise InputError(f'{what} are {labels.dtype}: give integers or strings')

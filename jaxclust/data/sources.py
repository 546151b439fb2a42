"""Image sets by name, from an .npz or .npy file or from a folder of images."""

import collections
import difflib
import glob
import math
import os
from pathlib import Path

import numpy as np

from jaxclust.data import tfds
from jaxclust.data.images import (
  Dataset,
  as_size,
  check_memory,
  checked,
  read_npz,
  reading,
  resize,
)
from jaxclust.errors import InputError

# File name extensions of the images in a folder, in lower case.
_EXTENSIONS = ('.png', '.jpg', '.jpeg')

# Modes in which images are loaded by their own Pillow mode; others become RGB.
_MODES = {'L': 'L', '1': 'L', 'RGBA': 'RGBA'}


def load(name, *, dir=None, raw_dir=None, size=None):
  """Loads an image set.

  Args:
    name: one of
      'digits': scikit-learn's; the images whose index % 4 == 3 are the test
        split.
      'fashion_mnist', 'mnist', 'kmnist', or any image set that
        tensorflow-datasets (TFDS) has prepared under `dir` ('cifar10',
        'emnist/letters').
      The path of an .npz with `images` and optional `labels`, `test_images`
        and `test_labels`, or of an .npy of images.
      The path of a folder of PNG or JPEG images; its sub-folders, if there are
        any, are the labels.
    dir: folder of TFDS; by default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    raw_dir: folder with the four original files of a set of the MNIST family;
      by default $JAXCLUST_RAW_DIR. If they are not there, they are downloaded.
    size: (height, width), or one number for both, to which images are resized;
      None or () keeps their size.

  Returns:
    A `Dataset` with images `[N, H, W, C]`.

  Raises:
    InputError: the set is unknown, damaged, empty or not available.

  >>> load('digits').images.shape
  (1348, 8, 8, 1)
  """
  data_dir = dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  raw_dir = raw_dir or os.environ.get('JAXCLUST_RAW_DIR')
  size = as_size(size)
  dataset = _read(name, Path(data_dir).expanduser(), raw_dir, size)
  return checked(dataset, size)


def _read(name, data_dir, raw_dir, size):
  """Returns an unchecked dataset; `size` is for images of different sizes."""
  path = Path(name).expanduser()
  if name == 'digits':
    return _digits()
  if path.suffix in ('.npz', '.npy'):
    return _from_file(name, path)
  folder = tfds.find(name, data_dir)
  if folder is None and name in tfds.FAMILY:
    folder = tfds.prepare(name, data_dir, raw_dir)
  if folder is not None:
    return tfds.read(name, folder, size)
  if name and path.is_dir():
    return _from_folder(name, path, size)
  if path.is_file():
    return _from_file(name, path)
  prepared = [n for p in ('*', '*/*') for n in tfds.prepared(data_dir, p)]
  known = sorted({'digits', *tfds.FAMILY, *prepared})
  nearest = difflib.get_close_matches(name, known, n=1)
  raise InputError(
    f'unknown image set {name!r}'
    + (f', nearest is {nearest[0]!r}' if nearest else '')
    + f': known sets are {", ".join(known)}; or prepare the set with TFDS under'
    f' {data_dir} (--config.data.dir), or give the path of an .npz, an .npy or '
    'a folder of images'
  )


def _digits():
  from sklearn.datasets import load_digits

  digits = load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  test = np.arange(len(images)) % 4 == 3
  splits = [a[rows] for rows in (~test, test) for a in (images, digits.target)]
  return Dataset('digits', *splits, tuple(map(str, digits.target_names)))


def _from_file(name, path):
  if not path.is_file():
    raise InputError(f'{path} does not exist: give an .npz or .npy file')
  if path.suffix == '.npy':
    with reading(path, '.npy', 'write it with numpy.save'):
      # Mapped first: a header that states more than the file holds fails here.
      array = np.lib.format.open_memmap(path, mode='r')
      check_memory(path, array.nbytes)
      return Dataset(name, np.array(array))
  arrays = read_npz(path)
  known = {'images', 'labels', 'test_images', 'test_labels'}
  if 'images' not in arrays or not arrays.keys() <= known:
    raise InputError(
      f'{path} holds the keys {sorted(arrays)}: it must hold images and may '
      'hold labels, test_images and test_labels, nothing else'
    )
  return Dataset(name, **arrays)


def _from_folder(name, root, size):
  files = sorted(  # glob leaves out hidden files
    file
    for file in glob.glob('**/*', root_dir=root, recursive=True)
    if file.lower().endswith(_EXTENSIONS) and (root / file).is_file()
  )
  if not files:
    raise InputError(
      f'{root} holds no {", ".join(_EXTENSIONS)}: give a folder of images'
    )
  groups = [file.split(os.sep)[0] if os.sep in file else '' for file in files]
  names, labels = np.unique(groups, return_inverse=True)
  if names[0] == '' and len(names) > 1:
    raise InputError(
      f'{root / files[groups.index("")]} lies beside the sub-folders that are '
      'the labels: move it into one'
    )
  dataset = Dataset(name, _read_images(root, files, size), files=tuple(files))
  if names[0] == '':
    return dataset
  return dataset._replace(labels=labels, label_names=tuple(names.tolist()))


def _read_images(root, files, size):
  """Returns files as one array of one size, in RGB if their modes differ.

  All headers are read first, so that nothing is decoded that would not fit.
  """
  paths = [root / file for file in files]
  sizes, modes = zip(*(_look(path, _header) for path in paths), strict=True)
  ((usual, _),) = collections.Counter(sizes).most_common(1)
  for path, found, mode in zip(paths, sizes, modes, strict=True):
    if size is None and found != usual:
      raise InputError(
        f'{path} has {found[0]}x{found[1]} pixels (height x width), most images'
        f' have {usual[0]}x{usual[1]}: resize all with '
        f'--config.data.size={usual}'
      )
    if mode[0] in 'IF':  # Pillow would clip the values of these modes
      raise InputError(
        f'{path} has mode {mode}, more than 8 bits per channel: convert it'
      )
  mode = _MODES.get(modes[0], 'RGB') if len(set(modes)) == 1 else 'RGB'
  areas = [math.prod(found) for found in sizes]
  check_memory(paths[np.argmax(areas)], max(areas) * len(mode))
  item = np.dtype((np.uint8, (*(size or usual), len(mode))))
  check_memory(root, len(paths) * item.itemsize)
  images = (_look(path, _pixels, mode) for path in paths)
  resized = (resize(image, item.shape[:2]) for image in images)
  return np.fromiter(resized, item, len(paths))


def _look(path, read, *options):
  """Returns what a function reads of an image file, if it is one."""
  from PIL import Image

  with (
    reading(path, 'PNG or JPEG', 'repair or remove it'),
    # Pillow runs other programs to decode some of the other formats.
    Image.open(path, formats=('PNG', 'JPEG')) as image,
  ):
    return read(image, *options)


def _header(image):
  """Returns the (height, width) of an image once it is upright, and its mode.

  If `info` has no EXIF, `getexif` would decode a whole PNG to look for it.
  """
  from PIL import ExifTags

  tags = image.getexif() if 'exif' in image.info else {}
  is_turned = tags.get(ExifTags.Base.Orientation, 1) > 4
  return image.size if is_turned else image.size[::-1], image.mode


def _pixels(image, mode):
  """Returns the pixels `[H, W, C]` of an upright image in a Pillow mode."""
  from PIL import ImageOps

  if 'exif' in image.info:
    image = ImageOps.exif_transpose(image)
  pixels = np.asarray(image.convert(mode))
  return pixels.reshape(*pixels.shape[:2], len(mode))

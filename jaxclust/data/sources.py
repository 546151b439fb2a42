"""Image sets by name, from an .npz or .npy file or from a folder of images."""

import contextlib
import difflib
import os
import zipfile

import numpy as np

from jaxclust.checks import warn
from jaxclust.data import folders, tfds
from jaxclust.data.images import (
  Dataset,
  as_size,
  check_memory,
  checked,
  read_npz,
  reading,
)
from jaxclust.errors import InputError
from jaxclust.paths import as_path


def load(name, *, dir=None, raw_dir=None, size=None, skip_bad=False):
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
      The path of a folder of pictures, in any format of still pictures that
        Pillow decodes. Its sub-folders, if there are any, are the labels;
        `train` and `test` alone are the splits, whose sub-folders are.
        Transparent pixels are laid on white.
    dir: folder of TFDS; by default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    raw_dir: folder with the four original files of a set of the MNIST family;
      by default $JAXCLUST_RAW_DIR. If they are not there, they are downloaded.
    size: (height, width), or one number for both, to which images are resized;
      None or () keeps their size.
    skip_bad: whether to leave out pictures of a folder that cannot be used.

  Returns:
    A `Dataset` with images `[N, H, W, C]`.

  Raises:
    InputError: the set is unknown, damaged, empty or not available.

  >>> load('digits').images.shape
  (1348, 8, 8, 1)
  """
  data_dir = dir or os.environ.get('TFDS_DATA_DIR')
  raw_dir = raw_dir or os.environ.get('JAXCLUST_RAW_DIR')
  size = as_size(size)
  folder = as_path(data_dir) if data_dir else _default_folder()
  dataset = _read(name, folder, raw_dir, size, skip_bad)
  return checked(dataset, size)


def _default_folder():
  """Where TFDS prepares sets; here, if there is no home."""
  with contextlib.suppress(InputError):
    return as_path('~/tensorflow_datasets')
  return as_path('tensorflow_datasets')


def _read(name, data_dir, raw_dir, size, skip_bad):
  """Returns an unchecked dataset; `size` is for images of different sizes."""
  path = as_path(name)
  if name in ('digits', *tfds.FAMILY) and path.is_dir():
    warn(f'{name} is the image set of that name: the folder here is ./{name}')
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
    return folders.read(name, path, size, skip_bad)
  if path.is_file():
    if not zipfile.is_zipfile(path):
      raise InputError(
        f'{path} is neither an .npz nor an .npy: give one, or the folder of '
        'pictures that it is in'
      )
    return _from_file(name, path)
  if name.startswith(('/', '.', '~')) or name.endswith('/'):
    raise InputError(
      f'there is no file and no folder {name}: give another path'
    )
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

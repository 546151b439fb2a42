"""Image sets as arrays: by name, from an .npz or .npy file or from a folder.

A set of tensorflow-datasets (TFDS) is prepared once, as TFDS does it but
without TensorFlow, and read through TFDS in its row order, which is the same on
every machine. The decoded arrays are kept beside the prepared set, so that only
the first read takes seconds.

Axes: N images of the training split, M of the test split, H rows, W columns,
C channels.
"""

import collections
import contextlib
import difflib
import glob
import gzip
import hashlib
import io
import math
import os
import re
import resource
import struct
import tempfile
import threading
import uuid
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxclust.numerics import InputError, check_count, one_line

# Sets that share the four files, and the builder, of MNIST.
_FAMILY = ('fashion_mnist', 'kmnist', 'mnist')
_COPY = 'jaxclust.npz'
_PROBE_SECONDS = 5
_STALL_SECONDS = 30

# Where Linux tells the memory of a container, by its two generations of them.
_CONTAINER_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


class Dataset(NamedTuple):
  """An image set; labels and a test split only where the source has them."""

  name: str
  images: np.ndarray  # [N, H, W, C] uint8, or float32 from an .npz or .npy
  labels: np.ndarray | None = None  # [N]
  test_images: np.ndarray | None = None  # [M, H, W, C]
  test_labels: np.ndarray | None = None  # [M]
  label_names: tuple[str, ...] = ()  # label i is called label_names[i]
  files: tuple[str, ...] = ()  # of the images in a folder, as paths below it


def load(name, *, dir=None, raw_dir=None, size=None):
  """Loads an image set.

  Args:
    name: 'digits' (scikit-learn's; every fourth image, index % 4 == 3, is the
      test split), 'fashion_mnist', 'mnist', 'kmnist', any image set that TFDS
      has prepared under `dir` ('cifar10', 'emnist/letters'), the path of an
      .npz with `images` and, if there are any, `labels`, `test_images` and
      `test_labels`, the path of an .npy of images, or the path of a folder of
      PNG or JPEG images, whose sub-folders, if there are any, are the labels.
    dir: TFDS's folder; by default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    raw_dir: folder with the four original files of a set of the MNIST family,
      by default $JAXCLUST_RAW_DIR; without them they are downloaded.
    size: (height, width), or a number for both, to which images of another size
      are resized; None or () keeps all as they are.

  Returns:
    A Dataset.

  Raises:
    InputError: the set is unknown, damaged, empty or cannot be had.
  """
  data_dir = dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  data_dir = Path(data_dir).expanduser()
  path = Path(name).expanduser()
  size = as_size(size)
  if name == 'digits':
    return _checked(_digits(), size)
  if path.suffix in ('.npz', '.npy'):
    return _from_file(name, path, size)
  folder = _find_prepared(data_dir, name)
  if folder is None and name in _FAMILY:
    folder = _prepare(
      name, data_dir, raw_dir or os.environ.get('JAXCLUST_RAW_DIR')
    )
  if folder is not None:
    return _from_prepared(name, folder, size)
  if name and path.is_dir():
    return _checked(_from_folder(name, path, size), size)
  if path.is_file():
    return _from_file(name, path, size)
  raise InputError(_unknown(name, data_dir))


def digest(dataset):
  """Returns a SHA-256, in hex, of the arrays: names, types, shapes, values."""
  sha = hashlib.sha256()
  for field, array in dataset._asdict().items():
    if isinstance(array, np.ndarray):
      sha.update(f'{field} {array.dtype.str} {array.shape} '.encode())
      sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return sha.hexdigest()


def with_channels(dataset, channels):
  """Returns a dataset in so many channels: grey in three is repeated, and three
  that are equal are one.

  Raises:
    InputError: something would be lost, or made up.
  """
  both = {'images': dataset.images, 'test_images': dataset.test_images}
  return dataset._replace(
    **{
      field: None if images is None else _in_channels(field, images, channels)
      for field, images in both.items()
    }
  )


def _in_channels(field, images, channels):
  found = images.shape[3]
  if found == channels:
    return images
  if (found, channels) == (1, 3):
    return np.repeat(images, 3, axis=3)
  if (found, channels) == (3, 1) and (images == images[..., :1]).all():
    return images[..., :1]
  raise InputError(
    f'{field} have {found} channels, and {channels} are needed: convert them; '
    'only grey, or what is grey in colour, is converted here'
  )


def host_bytes():
  """Returns how much memory this process may fill: all that the machine has,
  or what a container or a limit of processes leaves of it."""
  found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for file in _CONTAINER_LIMITS:
    with contextlib.suppress(OSError, ValueError):  # there may be no number
      found.append(int(Path(file).read_text()))
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  return min(found if limit == resource.RLIM_INFINITY else [*found, limit])


def _check_size(path, size):
  """Checks that what a file unpacks to leaves half of the memory."""
  bound = host_bytes() / 2
  if size > bound:
    raise InputError(
      f'{path} unpacks to {size / 2**30:.3g} GiB, and half of the memory is '
      f'{bound / 2**30:.3g} GiB: give fewer or smaller images'
    )


def as_size(size):
  """Returns (height, width), or None where nothing is to be resized.

  Args:
    size: as `load` takes it.

  Raises:
    InputError: it is no size.
  """
  if size is None or size == ():
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


def _checked(dataset, size):
  """Returns a dataset as its type promises it, or raises an InputError."""
  name = dataset.name
  images = _checked_images(f'images of {name}', dataset.images)
  images = _resized(name, images, size)
  _check_labels(f'labels of {name}', dataset.labels, images)
  test_images = dataset.test_images
  if test_images is not None:
    test_images = _checked_images(f'test_images of {name}', test_images)
    test_images = _resized(name, test_images, size)
    if test_images.shape[1:] != images.shape[1:]:
      raise InputError(
        f'test_images of {name} are {test_images.shape[1:]} each, but images '
        f'{images.shape[1:]}: give both splits the same channels, and one size '
        'with --config.data.size=(H, W)'
      )
  _check_labels(f'test_labels of {name}', dataset.test_labels, test_images)
  return dataset._replace(images=images, test_images=test_images)


def _checked_images(what, images):
  if images.ndim not in (3, 4):
    raise InputError(
      f'{what} have shape {images.shape}: expected [N, H, W] or [N, H, W, C]'
    )
  if not images.size:
    raise InputError(
      f'{what} have shape {images.shape}, an empty split: give some images'
    )
  if images.dtype.kind == 'f':
    found = images.dtype
    with np.errstate(over='ignore'):  # too large for float32: reported below
      images = images.astype(np.float32, copy=False)
    bad = ~np.isfinite(images)
    if bad.any():
      first = tuple(map(int, np.unravel_index(bad.argmax(), bad.shape)))
      raise InputError(
        f'{what} hold {bad.sum()} values that are not finite in float32, the '
        f'first at {list(first)}: mend or remove these images'
      )
    if found.itemsize > 4:
      warnings.warn(f'{what} are {found} and are cast to float32', stacklevel=2)
  elif images.dtype != np.uint8:
    raise InputError(
      f'{what} are {images.dtype}: convert them to uint8 or float32'
    )
  return images if images.ndim == 4 else images[..., None]


def _resized(name, images, size):
  """Returns images `[N, H, W, C]` in a size, as they are if that is None."""
  if size in (None, images.shape[1:3]):
    return images
  shape = (len(images), *size, images.shape[3])
  _check_size(name, math.prod(shape) * images.dtype.itemsize)
  resized = np.empty(shape, images.dtype)
  for row, image in enumerate(images):
    resized[row] = _resized_image(image, size)
  return resized


def _resized_image(image, size):
  """Returns an image `[H, W, C]`, uint8 or float32, in a size (height, width).

  Antialiased by a triangular filter, two pixels of the coarser grid wide. Its
  weights are positive, so that no value leaves the range of those around it.
  """
  from PIL import Image

  if image.shape[:2] == size:
    return image
  planes = [Image.fromarray(plane) for plane in np.moveaxis(image, 2, 0)]
  filtered = [p.resize(size[::-1], Image.Resampling.BILINEAR) for p in planes]
  return np.stack(filtered, axis=2)


def _check_labels(what, labels, images):
  if labels is None:
    return
  if images is None:
    raise InputError(f'{what} come without their images: add test_images')
  if labels.shape != images.shape[:1]:
    raise InputError(
      f'{what} have shape {labels.shape}: {len(images)} images need '
      f'({len(images)},)'
    )
  if labels.dtype.kind not in 'iuU':
    raise InputError(f'{what} are {labels.dtype}: give integers or strings')


def _digits():
  from sklearn.datasets import load_digits

  digits = load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  test = np.arange(len(images)) % 4 == 3
  return Dataset(
    name='digits',
    images=images[~test],
    labels=digits.target[~test],
    test_images=images[test],
    test_labels=digits.target[test],
    label_names=tuple(str(label) for label in digits.target_names),
  )


def _from_file(name, path, size):
  if path.suffix == '.npy':
    return _checked(Dataset(name, _read_npy(path)), size)
  arrays = read_npz(path)
  known = ('images', 'labels', 'test_images', 'test_labels')
  if 'images' not in arrays or not arrays.keys() <= set(known):
    raise InputError(
      f'{path} holds the keys {sorted(arrays)}: it must hold images and may '
      'hold labels, test_images and test_labels, nothing else'
    )
  return _checked(Dataset(name, **arrays), size)


def read_npz(path, remedy='write it with numpy.savez'):
  """Returns the arrays of an .npz file by key.

  Args:
    path: of the file.
    remedy: of a file that is damaged.

  Raises:
    InputError: it is missing, damaged or too large, or what it holds is no
      array.
  """
  with (
    _naming(path, '.npz', remedy),
    # Opened here, for numpy leaves a truncated file open.
    open(path, 'rb') as file,
    np.load(file, allow_pickle=False) as arrays,
  ):
    _check_size(path, sum(m.file_size for m in arrays.zip.infolist()))
    arrays = {key: arrays[key] for key in arrays.files}
  for key, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise InputError(f'{key} of {path} is no array: {remedy}')
  return arrays


def _read_npy(path):
  """Returns the array of an .npy file, whose header may promise more than it
  holds: mapped, that is an error before any memory is filled."""
  with _naming(path, '.npy', 'write it with numpy.save'):
    array = np.lib.format.open_memmap(path, mode='r')
    _check_size(path, array.nbytes)
    return np.array(array)


@contextlib.contextmanager
def _naming(path, kind, remedy):
  """Turns what is wrong with a file into an InputError that names it."""
  try:
    yield
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f'{path} does not exist: give an {kind} file') from error
  # A damaged file can fail in any layer from the archive to an array's header.
  except Exception as error:
    raise InputError(
      f'{path} is no readable {kind} ({one_line(error)}): {remedy}'
    ) from error


def _from_folder(name, root, size):
  pattern = ('.png', '.jpg', '.jpeg')
  files = sorted(  # glob leaves out what is hidden
    file
    for file in glob.glob('**/*', root_dir=root, recursive=True)
    if file.lower().endswith(pattern) and (root / file).is_file()
  )
  if not files:
    raise InputError(f'{root} holds no {", ".join(pattern)}: give it images')
  groups = [file.split(os.sep)[0] if os.sep in file else '' for file in files]
  label_names = sorted(set(groups))
  if label_names[0] == '' and len(label_names) > 1:
    raise InputError(
      f'{root / files[groups.index("")]} lies beside the sub-folders that are '
      'the labels: move it into one'
    )
  images = _read_images([root / file for file in files], size)
  dataset = Dataset(name, images, files=tuple(files))
  if label_names == ['']:
    return dataset
  labels = np.array([label_names.index(group) for group in groups])
  return dataset._replace(labels=labels, label_names=tuple(label_names))


def _read_images(paths, size):
  """Returns files as one array of one size, in RGB if their modes differ."""
  headers = [
    _decode(path, lambda image: (_upright_size(image), image.mode))
    for path in paths
  ]
  sizes, modes = zip(*headers, strict=True)
  size = size or _common_size(paths, sizes)
  for path, mode in zip(paths, modes, strict=True):
    if mode[0] in 'IF':  # conversion would clip these
      raise InputError(
        f'{path} has mode {mode}, more than 8 bits a channel: convert it'
      )
  mode = {'L': 'L', '1': 'L', 'RGBA': 'RGBA'}.get(
    modes[0] if len(set(modes)) == 1 else '', 'RGB'
  )
  areas = [math.prod(found) for found in sizes]
  largest = int(np.argmax(areas))
  _check_size(paths[largest], areas[largest] * len(mode))
  shape = (len(paths), *size, len(mode))
  _check_size(paths[0].parent, math.prod(shape))
  images = np.empty(shape, np.uint8)
  for row, (path, found) in enumerate(zip(paths, sizes, strict=True)):
    pixels = _decode(path, lambda image: _upright(image, mode))
    images[row] = _resized_image(pixels.reshape(*found, len(mode)), size)
  return images


def _orientation(image):
  """Returns how a camera says that it was held, 1 to 8; unless an image says so
  at its head, Pillow would decode it all to look for it."""
  from PIL import ExifTags

  tags = image.getexif() if 'exif' in image.info else {}
  return tags.get(ExifTags.Base.Orientation, 1)


def _upright_size(image):
  """Returns (height, width) of an image once it is turned."""
  return image.size if _orientation(image) > 4 else image.size[::-1]


def _upright(image, mode):
  """Returns the pixels of an image in a mode, turned as a camera says."""
  from PIL import ImageOps

  if _orientation(image) > 1:
    image = ImageOps.exif_transpose(image)
  return np.asarray(image.convert(mode))


def _common_size(paths, sizes):
  """Returns the size that all files have, or raises an InputError."""
  ((size, _),) = collections.Counter(sizes).most_common(1)
  for path, found in zip(paths, sizes, strict=True):
    if found != size:
      raise InputError(
        f'{path} has {found[0]}x{found[1]} pixels (height x width), most images'
        f' have {size[0]}x{size[1]}: resize all with --config.data.size={size}'
      )
  return size


def _decode(path, decode):
  """Returns decode(image) of a file, and names the file if that fails."""
  from PIL import Image

  try:
    # Some of the other formats are programs, or are read by one.
    with Image.open(path, formats=('PNG', 'JPEG')) as image:
      return decode(image)
  # A damaged file can fail in any layer of a decoder.
  except Exception as error:
    raise InputError(
      f'{path} is no readable PNG or JPEG ({one_line(error)}): mend or remove '
      'it'
    ) from error


def _find_prepared(data_dir, name):
  """Returns the folder of the newest prepared version of a set, or None."""
  if not re.fullmatch(r'\w+(/[\w.+-]+)?', name):
    return None
  # TFDS takes an empty folder for a prepared set; these two files are written
  # last and moved into place with the rest.
  folders = [
    info.parent
    for info in data_dir.glob(f'{name}/*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)
    and (info.parent / 'features.json').is_file()
  ]
  return max(
    folders,
    key=lambda folder: tuple(map(int, folder.name.split('.'))),
    default=None,
  )


def _unknown(name, data_dir):
  prepared = {
    info.parent.parent.relative_to(data_dir).as_posix()
    for depth in ('*/*', '*/*/*')
    for info in data_dir.glob(f'{depth}/dataset_info.json')
  }
  known = sorted({'digits', *_FAMILY, *prepared})
  nearest = difflib.get_close_matches(name, known, n=1)
  return (
    f'unknown image set {name!r}'
    + (f', nearest is {nearest[0]!r}' if nearest else '')
    + f': known are {", ".join(known)}; else prepare it with TFDS under '
    f'{data_dir} (--config.data.dir), or give the path of an .npz, an '
    '.npy or a folder of images'
  )


def _prepare(name, data_dir, raw_dir):
  """Prepares a set of the MNIST family and returns its folder."""
  import tensorflow_datasets as tfds

  builder_class = _builder_class(name)
  folder = data_dir / name / str(builder_class.VERSION)
  if folder.is_dir():
    try:
      folder.rmdir()
    except OSError as error:
      raise InputError(
        f'{folder} holds no complete set: delete it and run again'
      ) from error
  with _quiet(), tempfile.TemporaryDirectory() as scratch:
    raw_dir = _raw_files(name, builder_class.url_infos, raw_dir, scratch)
    try:
      builder_class(data_dir=data_dir).download_and_prepare(
        download_dir=scratch,
        download_config=tfds.download.DownloadConfig(manual_dir=raw_dir),
        file_format='array_record',
      )
    except OSError as error:
      # Of two processes that prepare at once the second finds the set there.
      if _find_prepared(data_dir, name) is None:
        raise InputError(
          f'cannot prepare {name} under {data_dir} ({one_line(error)}): give '
          'another folder with --config.data.dir'
        ) from error
  return folder


def _builder_class(name):
  """Returns TFDS's builder of a set, without what needs TensorFlow in it."""
  from PIL import Image
  from tensorflow_datasets.image_classification import mnist

  upstream = {
    'fashion_mnist': mnist.FashionMNIST,
    'kmnist': mnist.KMNIST,
    'mnist': mnist.MNIST,
  }[name]
  dataset_name = name

  class Builder(upstream, skip_registration=True):
    name = dataset_name
    url_infos = upstream.url_infos

    def _split_generators(self, dl_manager):
      # Not extracted: TFDS files what it extracts by name, and the sets of the
      # family share their file names.
      paths = {
        info.filename: dl_manager.download(url)
        for url, info in self.url_infos.items()
      }
      return {
        split: self._generate_examples(
          paths[f'{prefix}-images-idx3-ubyte.gz'],
          paths[f'{prefix}-labels-idx1-ubyte.gz'],
        )
        for split, prefix in (('train', 'train'), ('test', 't10k'))
      }

    def _generate_examples(self, images_path, labels_path):
      images, labels = _read_idx(images_path), _read_idx(labels_path)
      for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, format='png')
        png.seek(0)
        yield row, {'image': png, 'label': int(label)}

  return Builder


def _read_idx(path):
  """Returns the array of an IDX file whose checksum has been verified."""
  with gzip.open(path) as file:
    return _parse_idx(file.read())


def _parse_idx(content):
  """Returns the array that the bytes of an IDX file hold.

  Raises:
    ValueError: they are not those of one array of bytes.
  """
  rank = content[3] if content[:3] == b'\0\0\x08' and len(content) > 3 else 0
  start = 4 + 4 * rank
  if not rank or len(content) < start:
    raise ValueError(f'{content[:4].hex()} starts no IDX file of bytes')
  shape = struct.unpack_from(f'>{rank}I', content, 4)
  if math.prod(shape) != len(content) - start:
    raise ValueError(
      f'{len(content) - start} bytes are no array of the shape {shape}'
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _raw_files(name, url_infos, raw_dir, scratch):
  """Returns a folder with the verified files: raw_dir, or else scratch."""
  folder = Path(raw_dir or scratch).expanduser()
  if not all((folder / i.filename).is_file() for i in url_infos.values()):
    folder = Path(scratch)
    _download(name, url_infos, raw_dir, folder)
  for info in url_infos.values():
    content = (folder / info.filename).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if (len(content), found) != (info.size, info.checksum):
      raise InputError(
        f'{folder / info.filename} is not the original of {name}: expected '
        f'{info.size} bytes with SHA-256 {info.checksum}, got {len(content)} '
        f'bytes with {found}; fetch it again, or give the folder of '
        f"{name}'s own files with --config.data.raw_dir"
      )
  return folder


def _download(name, url_infos, raw_dir, folder):
  import requests

  host = next(iter(url_infos)).split('/')[2]
  files = ', '.join(info.filename for info in url_infos.values())
  try:
    # TFDS's own downloader retries for minutes without a network, and waits for
    # ever on a host that does not answer.
    _probe(next(iter(url_infos)))
    for url, info in url_infos.items():
      with requests.get(url, stream=True, timeout=_STALL_SECONDS) as response:
        response.raise_for_status()
        with open(folder / info.filename, 'wb') as file:
          for block in response.iter_content(1 << 20):
            file.write(block)
  except OSError as error:  # as all of requests' errors are
    lacking = f'{raw_dir} lacks its files' if raw_dir else 'no raw_dir is given'
    raise InputError(
      f'{name} is not prepared, {lacking}, and {host} does not send them: use '
      'the variant :digits of the config, or '
      f'--config.data.raw_dir=FOLDER (or $JAXCLUST_RAW_DIR) with {files}, or '
      f'--config.data.dir=FOLDER where TFDS has prepared {name}, or a network '
      f'({one_line(error)})'
    ) from error


def _probe(url):
  """Raises an OSError unless a host answers soon."""
  import requests

  outcome = [TimeoutError(f'no answer within {_PROBE_SECONDS} seconds')]

  def ask():
    try:
      requests.head(url, timeout=_PROBE_SECONDS)
      outcome[0] = None
    except OSError as error:
      outcome[0] = error

  # In a thread, for looking up a name has no time limit of its own.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_PROBE_SECONDS)
  if outcome[0]:
    raise outcome[0]


def _from_prepared(name, folder, size):
  """Returns a prepared set, from its decoded copy if there is a sound one."""
  info = (folder / 'dataset_info.json').read_bytes()
  source = hashlib.sha256(info).hexdigest()
  try:
    arrays = read_npz(folder / _COPY)
    if str(arrays.pop('source', '')) == source:
      label_names = tuple(map(str, arrays.pop('label_names')))
      copy = Dataset(name, **arrays, label_names=label_names)
      return _checked(copy, size)
  except (InputError, KeyError, TypeError):
    pass  # absent or damaged: made anew
  with _quiet():
    decoded, resized = _decode_prepared(name, folder, size)
  if not resized:
    decoded = _checked(decoded, None)
    _write_copy(folder, decoded, source)
  return _checked(decoded, size)


def _write_copy(folder, dataset, source):
  arrays = dataset._asdict() | {'source': source}
  del arrays['name'], arrays['files']
  arrays = {key: value for key, value in arrays.items() if value is not None}
  part = folder / f'{_COPY}.{uuid.uuid4().hex}'
  # A folder that cannot be written is read slowly each time, and that is all.
  with contextlib.suppress(OSError):
    try:
      with open(part, 'wb') as file:
        np.savez(file, **arrays)
      os.replace(part, folder / _COPY)
    finally:
      part.unlink(missing_ok=True)


def _decode_prepared(name, folder, size):
  """Returns a prepared set, and whether its images, as their own sizes may
  differ, have been resized."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    features, splits = builder.info.features, builder.info.splits
    image = _find_feature(features, tfds.features.Image, 'image')
    label = _find_feature(features, tfds.features.ClassLabel, 'label')
    if image is None or 'train' not in splits:
      raise InputError(
        f'{folder} has the features {list(features)} and the splits '
        f'{list(splits)}: it needs an Image and a train split'
      )
    if None not in features[image].shape:
      size = None
    images, labels = _read_split(builder, 'train', image, label, size)
    test = next((s for s in ('test', 'validation') if s in splits), None)
    test_images, test_labels = (
      _read_split(builder, test, image, label, size) if test else (None, None)
    )
    label_names = tuple(features[label].names or ()) if label else ()
  except InputError:
    raise
  # TFDS and its readers raise all sorts of errors on damaged files.
  except Exception as error:
    raise InputError(
      f'{folder} cannot be read ({one_line(error)}): delete it and prepare it '
      'anew'
    ) from error
  dataset = Dataset(name, images, labels, test_images, test_labels, label_names)
  return dataset, size is not None


def _find_feature(features, kind, preferred):
  # Sorted, for the order of TFDS's items changes from process to process.
  keys = sorted(k for k, value in features.items() if isinstance(value, kind))
  return preferred if preferred in keys else next(iter(keys), None)


def _read_split(builder, split, image, label, size):
  """Returns the images of a split, resized if there is a size, and its labels
  if they have a key."""
  total, count = builder.info.splits[split].num_examples, 0
  images, labels = None, np.empty(total, np.int64) if label else None
  for count, example in enumerate(_examples(builder, split), start=1):
    pixels = example[image]
    if size is not None:
      pixels = _resized_image(pixels, size)
    if images is None:
      images = np.empty((total, *pixels.shape), pixels.dtype)
    if pixels.shape != images.shape[1:]:
      raise InputError(
        f'image {count - 1} of the {split} split of {builder.data_dir} is '
        f'{pixels.shape}, those before are {images.shape[1:]}: resize all, '
        'with --config.data.size=(H, W)'
      )
    images[count - 1] = pixels
    if label:
      labels[count - 1] = example[label]
  if not count or count != total:
    raise InputError(
      f'the {split} split of {builder.data_dir} holds {count} images of '
      f'{total}: delete the folder and prepare it anew'
    )
  return images, labels


def _examples(builder, split, block=1024):
  """Yields the decoded examples of a split, without TensorFlow."""
  if builder.info.file_format.value == 'tfrecord':
    for part in builder.info.splits[split].file_instructions:
      for record in _tfrecords(part.filename):
        yield builder.info.features.deserialize_example_np(record)
    return
  source = builder.as_data_source(split)
  for start in range(0, len(source), block):  # one by one takes twice as long
    stop = min(start + block, len(source))
    yield from source.__getitems__(range(start, stop))


def _tfrecords(path):
  """Yields the records of a TFRecord file, its two checksums unread."""
  left = os.path.getsize(path)
  with open(path, 'rb') as file:
    while header := file.read(12):
      (length,) = struct.unpack('<Q4x', header)
      left -= length + 16
      if left < 0:
        raise EOFError(f'{path} ends within a record')
      yield file.read(length)
      file.seek(4, os.SEEK_CUR)


@contextlib.contextmanager
def _quiet():
  """Silences TFDS: its progress bars, what it prints and its advice."""
  import tensorflow_datasets as tfds
  from absl import logging

  tfds.disable_progress_bar()
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)

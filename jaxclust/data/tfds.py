"""Named image sets through tensorflow-datasets (TFDS), without TensorFlow.

A set is prepared once and read through TFDS in its row order, which is the same
on every machine. A decoded copy of the arrays is kept beside the prepared set,
so that later reads are fast.
"""

import contextlib
import hashlib
import io
import os
import re
import struct
import tempfile

import numpy as np

from jaxclust.data import originals
from jaxclust.data.images import Dataset, read_npz, reading, resize
from jaxclust.errors import InputError, one_line

# Sets that `prepare` can prepare, which share the file names of MNIST -> the
# class of TFDS.
FAMILY = {'fashion_mnist': 'FashionMNIST', 'kmnist': 'KMNIST', 'mnist': 'MNIST'}

# File name of the decoded copy in the folder of a prepared set.
_COPY = 'jaxclust.npz'


def prepared(data_dir, pattern):
  """Returns the newest versions' folders of the prepared sets whose names match
  a glob pattern, by name."""
  # TFDS writes these two files last; a folder without them is incomplete.
  folders = [
    info.parent
    for info in data_dir.glob(f'{pattern}/*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)
    and (info.parent / 'features.json').is_file()
  ]
  folders.sort(key=lambda folder: tuple(map(int, folder.name.split('.'))))
  return {f.parent.relative_to(data_dir).as_posix(): f for f in folders}


def find(name, data_dir):
  """Returns the folder of the newest prepared version of a set, or None."""
  is_name = re.fullmatch(r'\w+(/[\w.+-]+)?', name)
  return prepared(data_dir, name).get(name) if is_name else None


def prepare(name, data_dir, raw_dir):
  """Prepares a set of `FAMILY`, see `originals.read`, and returns its folder.

  Raises:
    InputError: the files are damaged or not available, or the folder cannot be
      written.
  """
  from tensorflow_datasets.image_classification import mnist

  upstream = getattr(mnist, FAMILY[name])
  folder = data_dir / name / str(upstream.VERSION)
  if folder.is_dir():
    try:
      folder.rmdir()
    except OSError as error:
      raise InputError(
        f'{folder} does not hold a complete set: delete it and run again'
      ) from error
  arrays = originals.read(name, upstream.url_infos, raw_dir)
  with _quiet(), tempfile.TemporaryDirectory() as scratch:
    try:
      builder = _builder_class(upstream, name, arrays)(data_dir=data_dir)
      builder.download_and_prepare(
        download_dir=scratch, file_format='array_record'
      )
    except OSError as error:
      # If two processes prepare a set at once, the second one fails here.
      if find(name, data_dir) is None:
        raise InputError(
          f'cannot prepare {name} under {data_dir} ({one_line(error)}): give '
          'another folder with --config.data.dir'
        ) from error
  return folder


def _builder_class(upstream, dataset_name, arrays):
  """Returns a subclass of TFDS's builder that encodes without TensorFlow."""
  from PIL import Image

  class Builder(upstream, skip_registration=True):
    name = dataset_name
    url_infos = upstream.url_infos

    def _split_generators(self, dl_manager):
      prefixes = {'train': 'train', 'test': 't10k'}
      return {k: self._generate_examples(v) for k, v in prefixes.items()}

    def _generate_examples(self, prefix):
      images = arrays[f'{prefix}-images-idx3-ubyte.gz']
      labels = arrays[f'{prefix}-labels-idx1-ubyte.gz']
      for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield row, {'image': Image.fromarray(image), 'label': int(label)}

  return Builder


def read(name, folder, size):
  """Returns the `Dataset` of a prepared set, unchecked.

  Images are resized to a size (height, width) if it is not None; those that are
  known to have one size keep it.

  Raises:
    InputError: the set is damaged, or has no images or no train split.
  """
  info = (folder / 'dataset_info.json').read_bytes()
  source = hashlib.sha256(info).hexdigest()
  with contextlib.suppress(InputError, KeyError, TypeError):
    arrays = read_npz(folder / _COPY)
    if str(arrays.pop('source')) == source:
      label_names = tuple(map(str, arrays.pop('label_names')))
      return Dataset(name, **arrays, label_names=label_names)
  import tensorflow_datasets as tfds

  with (
    _quiet(),
    reading(folder, 'a prepared set', 'delete it and prepare it again'),
  ):
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
    test = next((s for s in ('test', 'validation') if s in splits), None)
    dataset = Dataset(
      name,
      *_read_split(builder, 'train', image, label, size),
      *(_read_split(builder, test, image, label, size) if test else ()),
      label_names=tuple(features[label].names or ()) if label else (),
    )
  if size is None:
    _write_copy(folder, dataset, source)
  return dataset


def _write_copy(folder, dataset, source):
  fields = dataset._asdict().items()
  arrays = {
    key: value for key, value in fields if isinstance(value, np.ndarray)
  }
  arrays |= {'label_names': dataset.label_names, 'source': source}
  # If the folder is read-only or the disk full, later reads decode again.
  with (
    contextlib.suppress(OSError),
    tempfile.TemporaryDirectory(dir=folder) as scratch,
  ):
    part = os.path.join(scratch, _COPY)
    np.savez(part, **arrays)
    os.replace(part, folder / _COPY)


def _find_feature(features, kind, preferred):
  # Sorted because the order of TFDS's items differs between processes.
  keys = sorted(k for k, value in features.items() if isinstance(value, kind))
  return preferred if preferred in keys else next(iter(keys), None)


def _read_split(builder, split, image, label, size):
  """Returns the images and labels, which have these keys, of a split."""
  images, labels = [], []
  for row, example in enumerate(_examples(builder, split)):
    pixels = example[image]
    images.append(pixels if size is None else resize(pixels, size))
    labels.append(example[label] if label else 0)
    if images[row].shape != images[0].shape:
      raise InputError(
        f'image {row} of the {split} split of {builder.data_dir} has shape '
        f'{images[row].shape}, those before it have {images[0].shape}: resize '
        'all with --config.data.size=(H, W)'
      )
  total = builder.info.splits[split].num_examples
  if not images or len(images) != total:
    raise InputError(
      f'the {split} split of {builder.data_dir} holds {len(images)} of {total} '
      'images: delete the folder and prepare it again'
    )
  return np.stack(images), np.array(labels, np.int64) if label else None


def _examples(builder, split):
  """Yields the decoded examples of a split, without TensorFlow."""
  info = builder.info
  read = {'array_record': _array_records, 'tfrecord': _tfrecords}
  for part in info.splits[split].file_instructions:
    records = read[info.file_format.value](part.filename)
    yield from map(info.features.deserialize_example_np, records)


def _array_records(path):
  """Returns the records of an ArrayRecord file."""
  from array_record.python.array_record_module import ArrayRecordReader

  with contextlib.closing(ArrayRecordReader(str(path))) as reader:
    return reader.read_all()


def _tfrecords(path):
  """Yields the records of a TFRecord file; checksums are not verified."""
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
  """Silences the progress bars, prints and log messages of TFDS."""
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

"""Prepared image sets of any kind, read through TFDS."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from image_sets import assert_equal, count_rows, isolate, random_images
from PIL import Image

from jaxclust import data
from jaxclust.data import tfds
from jaxclust.errors import InputError


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
  isolate(monkeypatch, tmp_path / 'default')


def _prepare_flowers(data_dir, splits, version='1.0.0'):
  """Prepares a small colour set from {split: images}; labels are 0 1 2 0..."""
  from tensorflow_datasets import core, features

  class Flowers(core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = core.Version(version)

    def _info(self):
      described = {
        'coarse': features.ClassLabel(names=['x']),
        'image': features.Image(shape=(None, None, 3)),
        'label': features.ClassLabel(names=['rose', 'tulip', 'lily']),
      }
      return core.DatasetInfo(
        builder=self, features=features.FeaturesDict(described)
      )

    def _split_generators(self, dl_manager):
      return {k: self._generate_examples(v) for k, v in splits.items()}

    def _generate_examples(self, images):
      for row, image in enumerate(images):
        example = {'image': Image.fromarray(image), 'label': row % 3}
        yield row, example | {'coarse': 0}

  with tfds._quiet():
    builder = Flowers(data_dir=data_dir)
    builder.download_and_prepare(file_format='array_record')
  return Path(builder.data_dir)


def _to_tfrecord(folder):
  """Rewrites a prepared set as TFRecord files (with checksums of zero)."""
  from array_record.python.array_record_module import ArrayRecordReader

  for path in list(folder.glob('*.array_record-*')):
    reader = ArrayRecordReader(str(path))
    with open(str(path).replace('array_record', 'tfrecord'), 'wb') as file:
      for record in reader.read_all():
        file.write(struct.pack('<Q4x', len(record)) + record + bytes(4))
    reader.close()
    path.unlink()
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  assert json.loads(info.read_text())['fileFormat'] == 'tfrecord'


@pytest.mark.parametrize(
  ('file_format', 'test'),
  [('array_record', 'test'), ('tfrecord', 'validation'), ('tfrecord', None)],
)
def test_any_prepared_set_of_images_is_read(tmp_path, file_format, test):
  splits = {'train': random_images(7, 6, 5, 3)}
  if test:
    splits[test] = random_images(4, 6, 5, 3, seed=1)
  folder = _prepare_flowers(tmp_path, splits)
  if file_format == 'tfrecord':
    _to_tfrecord(folder)
  dataset = data.load('flowers', dir=tmp_path)
  assert dataset.label_names == ('rose', 'tulip', 'lily')
  found = {'train': (dataset.images, dataset.labels)}
  if test:
    found[test] = dataset.test_images, dataset.test_labels
  else:
    assert dataset.test_images is dataset.test_labels is None
  for split, images in splits.items():
    labels = np.arange(len(images)) % 3
    assert count_rows(*found[split]) == count_rows(images, labels)
  assert_equal(data.load('flowers', dir=tmp_path), dataset)


def test_test_is_taken_before_validation(tmp_path):
  images = random_images(3, 2, 6, 5, 3)
  splits = dict(zip(('validation', 'train', 'test'), images, strict=True))
  _prepare_flowers(tmp_path, splits)
  dataset = data.load('flowers', dir=tmp_path)
  assert count_rows(dataset.test_images, dataset.test_labels) == count_rows(
    splits['test'], np.arange(2)
  )


def test_a_tfrecord_file_that_ends_early_is_named(tmp_path):
  folder = _prepare_flowers(tmp_path, {'train': random_images(7, 6, 5, 3)})
  _to_tfrecord(folder)
  (path,) = folder.glob('*.tfrecord-*')
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(InputError, match=r'1\.0\.0 cannot be read .*00001 ends'):
    data.load('flowers', dir=tmp_path)
  path.write_bytes(path.read_bytes()[:0])
  with pytest.raises(InputError, match='holds 0 of 7 images'):
    data.load('flowers', dir=tmp_path)


def test_a_record_of_absurd_length_is_not_read(tmp_path):
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(struct.pack('<Q4x', 2**62) + b'some')
  with pytest.raises(EOFError, match='ends within a record'):
    list(tfds._tfrecords(path))


def test_of_several_features_the_first_in_name_is_taken():
  features = {'fine': 1, 'coarse': 2, 'image': 'x'}
  assert tfds._find_feature(features, int, 'label') == 'coarse'
  assert tfds._find_feature(features, int, 'fine') == 'fine'
  assert tfds._find_feature(features, float, 'label') is None


def test_a_prepared_set_without_a_train_split_is_refused(tmp_path):
  _prepare_flowers(tmp_path, {'extra': random_images(7, 6, 5, 3)})
  with pytest.raises(InputError, match=r"splits \['extra'\]: it needs"):
    data.load('flowers', dir=tmp_path)


def test_images_of_differing_size_are_refused_unless_they_are_resized(tmp_path):
  images = [*random_images(7, 6, 5, 3), *random_images(1, 6, 4, 3)]
  _prepare_flowers(tmp_path, {'train': images})
  told = r'image \d of the train split .*resize all with --config.data.size='
  with pytest.raises(InputError, match=told):
    data.load('flowers', dir=tmp_path)
  dataset = data.load('flowers', dir=tmp_path, size=(6, 5))
  assert dataset.images.shape == (8, 6, 5, 3)
  found = count_rows(dataset.images, dataset.labels)
  assert not count_rows(images[:7], np.arange(7) % 3) - found
  with pytest.raises(InputError, match=told):  # no decoded copy
    data.load('flowers', dir=tmp_path)


def test_the_copy_of_a_prepared_set_has_its_own_size(tmp_path):
  images = random_images(7, 6, 5, 3)
  folder = _prepare_flowers(tmp_path, {'train': images})
  features = folder / 'features.json'
  features.write_text(
    features.read_text().replace('"-1"', '"6"', 1).replace('"-1"', '"5"', 1)
  )
  for _ in range(2):
    dataset = data.load('flowers', dir=tmp_path, size=4)
    assert dataset.images.shape == (7, 4, 4, 3)
    assert (folder / 'jaxclust.npz').exists()
  dataset = data.load('flowers', dir=tmp_path)
  assert count_rows(dataset.images, dataset.labels) == count_rows(
    images, np.arange(7) % 3
  )


def test_the_newest_version_is_read(tmp_path):
  for version, total in (('9.0.0', 3), ('10.0.0', 4)):
    splits = {'train': random_images(total, 6, 5, 3)}
    _prepare_flowers(tmp_path, splits, version)
  assert len(data.load('flowers', dir=tmp_path).images) == 4


def test_a_configuration_of_a_set_is_read_by_its_name(tmp_path):
  folder = _prepare_flowers(tmp_path, {'train': random_images(7, 6, 5, 3)})
  shutil.move(folder, tmp_path / 'flowers' / 'small' / '1.0.0')
  assert len(data.load('flowers/small', dir=tmp_path).images) == 7
  with pytest.raises(InputError, match="nearest is 'flowers/small'"):
    data.load('flowers', dir=tmp_path)

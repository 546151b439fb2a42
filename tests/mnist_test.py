"""Sets of the MNIST family: how they are prepared and copied."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_sets import (
  ORIGINALS,
  assert_equal,
  count_rows,
  empty,
  flip_a_bit,
  forbid,
  isolate,
  read_idx,
  truncate,
  write_originals,
)
from PIL import Image

from jaxclust import data
from jaxclust.data import tfds
from jaxclust.errors import InputError


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
  isolate(monkeypatch, tmp_path / 'default')


@pytest.fixture
def raw_dir(tmp_path, monkeypatch):
  """A tiny Fashion-MNIST, whose files TFDS takes for the originals."""
  from tensorflow_datasets.image_classification import mnist

  url_infos = write_originals(tmp_path / 'raw', mnist.FashionMNIST.URL)
  monkeypatch.setattr(mnist.FashionMNIST, 'url_infos', url_infos, raising=False)
  return tmp_path / 'raw'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A folder where the tiny set is prepared, and its dataset."""
  from tensorflow_datasets.image_classification import mnist

  folder = tmp_path_factory.mktemp('prepared')
  infos = write_originals(folder / 'raw', mnist.FashionMNIST.URL)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mnist.FashionMNIST, 'url_infos', infos, raising=False)
    return folder / 'tfds', _load_tiny(folder, folder / 'raw')


@pytest.fixture
def first(prepared, tmp_path):
  """The dataset, prepared in a copy of that folder."""
  folder, dataset = prepared
  shutil.copytree(folder, tmp_path / 'tfds')
  return dataset


def _load_tiny(tmp_path, raw_dir=None):
  return data.load('fashion_mnist', dir=tmp_path / 'tfds', raw_dir=raw_dir)


def _version_dir(tmp_path):
  return tmp_path / 'tfds' / 'fashion_mnist' / '3.0.1'


def test_a_prepared_set_holds_the_images_and_labels_of_its_files(
  tmp_path, raw_dir, capfd
):
  dataset = _load_tiny(tmp_path, raw_dir)
  assert dataset.name == 'fashion_mnist'
  assert dataset.images.shape == (40, 28, 28, 1)
  assert dataset.test_images.shape == (20, 28, 28, 1)
  assert dataset.label_names[0] == 'T-shirt/top'
  assert len(dataset.label_names) == 10
  for prefix, images, labels in (
    ('train', dataset.images, dataset.labels),
    ('t10k', dataset.test_images, dataset.test_labels),
  ):
    assert count_rows(images, labels) == count_rows(
      read_idx(raw_dir / f'{prefix}-images-idx3-ubyte.gz', 3),
      read_idx(raw_dir / f'{prefix}-labels-idx1-ubyte.gz', 1),
    )
  assert data.digest(_load_tiny(tmp_path)) == data.digest(dataset)
  assert capfd.readouterr() == ('', '')
  assert os.listdir(tmp_path / 'tfds') == ['fashion_mnist']


def test_the_folders_are_taken_from_the_environment(
  tmp_path, raw_dir, monkeypatch
):
  monkeypatch.setenv('JAXCLUST_RAW_DIR', str(raw_dir))
  data.load('fashion_mnist', dir='', raw_dir='')
  assert os.listdir(tmp_path / 'default') == ['fashion_mnist']


def _of_another_version(path):
  with np.load(path) as file:
    arrays = dict(file)
  arrays['images'] = arrays['images'][:7]
  arrays['labels'] = arrays['labels'][:7]
  np.savez(path, **arrays | {'source': 'another dataset_info.json'})


def _without_a_key(path):
  with np.load(path) as file:
    arrays = dict(file)
  del arrays['images']
  np.savez(path, **arrays)


def _pickled(path):
  np.savez(path, images=np.array([object()]))


@pytest.mark.parametrize(
  'damage',
  [
    lambda path: None,
    truncate,
    flip_a_bit,
    empty,
    _of_another_version,
    _without_a_key,
    _pickled,
    Path.unlink,
  ],
)
def test_the_decoded_copy_is_read_and_made_again_if_it_is_damaged(
  tmp_path, first, damage, monkeypatch
):
  damage(_version_dir(tmp_path) / 'jaxclust.npz')
  assert_equal(_load_tiny(tmp_path), first)
  monkeypatch.setattr(tfds, '_read_split', forbid)
  monkeypatch.setattr(tfds, 'prepare', forbid)
  assert_equal(_load_tiny(tmp_path), first)


def test_a_copy_without_its_prepared_set_is_not_used(tmp_path, first):
  folder = _version_dir(tmp_path)
  (folder / 'features.json').unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 does not hold a complete set'):
    _load_tiny(tmp_path)
  for path in folder.iterdir():
    if path.name != 'jaxclust.npz':
      path.unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 does not hold a complete set'):
    _load_tiny(tmp_path)


def test_a_read_only_folder_is_read_each_time(tmp_path, first, monkeypatch):
  folder = _version_dir(tmp_path)
  (folder / 'jaxclust.npz').unlink()
  before = sorted(os.listdir(folder))

  def refuse(path, **arrays):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(np, 'savez', refuse)
  assert_equal(_load_tiny(tmp_path), first)
  assert sorted(os.listdir(folder)) == before


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path, raw_dir, monkeypatch):
  def savez(path, **arrays):
    Path(path).write_bytes(b'PK')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', savez)
  assert len(_load_tiny(tmp_path, raw_dir).images) == 40
  assert not list(_version_dir(tmp_path).glob('jaxclust*'))


def test_a_damaged_original_leaves_nothing(tmp_path, raw_dir):
  good = tmp_path / 'good'
  shutil.copytree(raw_dir, good)
  flip_a_bit(raw_dir / ORIGINALS[0])
  with pytest.raises(InputError, match='is not the original of fashion_mnist'):
    _load_tiny(tmp_path, raw_dir)
  assert not (tmp_path / 'tfds').exists()
  assert len(_load_tiny(tmp_path, good).images) == 40


def test_the_files_of_a_sister_set_are_refused(tmp_path, raw_dir):
  with pytest.raises(InputError, match='is not the original of kmnist'):
    data.load('kmnist', dir=tmp_path / 'tfds', raw_dir=raw_dir)


def test_an_empty_version_folder_is_not_a_prepared_set(tmp_path, raw_dir):
  _version_dir(tmp_path).mkdir(parents=True)
  assert len(_load_tiny(tmp_path, raw_dir).images) == 40


def test_a_set_that_another_process_prepares_meanwhile_is_read(
  tmp_path, raw_dir, monkeypatch
):
  from_array, others = Image.fromarray, []

  def overtaken(array):
    if not others:
      others.append(None)
      others[0] = _load_tiny(tmp_path, raw_dir)
    return from_array(array)

  monkeypatch.setattr(Image, 'fromarray', overtaken)
  assert_equal(_load_tiny(tmp_path, raw_dir), others[0])
  assert os.listdir(tmp_path / 'tfds' / 'fashion_mnist') == ['3.0.1']


def test_a_folder_that_cannot_be_made_is_named(tmp_path, raw_dir):
  (tmp_path / 'tfds').write_text('a file')
  with pytest.raises(InputError, match=r'cannot prepare .*/tfds.*data.dir'):
    _load_tiny(tmp_path, raw_dir)


def test_a_damaged_prepared_set_is_named(tmp_path, first):
  folder = _version_dir(tmp_path)
  (folder / 'jaxclust.npz').unlink()
  (folder / 'fashion_mnist-test.array_record-00000-of-00001').unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 cannot be .*delete it'):
    _load_tiny(tmp_path)


@pytest.mark.parametrize(
  ('name', 'host'),
  [
    ('fashion_mnist', 'eu-central-1.amazonaws.com'),
    ('kmnist', 'codh.rois.ac.jp'),
    ('mnist', 'storage.googleapis.com'),
  ],
)
def test_without_a_network_the_ways_out_are_listed(tmp_path, name, host):
  with pytest.raises(InputError) as caught:
    data.load(name, dir=tmp_path / 'tfds', raw_dir=tmp_path)
  message = str(caught.value)
  assert f'{tmp_path} lacks its files' in message
  assert f'{host} does not send them' in message
  for way in (':digits', '--config.data.raw_dir=', '--config.data.dir='):
    assert way in message
  for way in ('$JAXCLUST_RAW_DIR', 'network', *ORIGINALS):
    assert way in message
  assert '\n' not in message
  assert not (tmp_path / 'tfds').exists()

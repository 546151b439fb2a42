"""Image sets from every source, and what is said of those that are unusable."""

import collections
import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxclust import data, memory
from jaxclust.data import images as arrays
from jaxclust.data import originals, tfds
from jaxclust.errors import InputError

# Read here, for the tests themselves do not see it.
RAW_DIR = os.environ.get('JAXCLUST_RAW_DIR')
RAW_FILES = (
  't10k-images-idx3-ubyte.gz',
  't10k-labels-idx1-ubyte.gz',
  'train-images-idx3-ubyte.gz',
  'train-labels-idx1-ubyte.gz',
)


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
  """No set of the machine's own, no original files, no network."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'default'))
  monkeypatch.delenv('JAXCLUST_RAW_DIR', raising=False)
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
  monkeypatch.setenv('no_proxy', '')


def _images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _write_idx(path, array):
  header = struct.pack(f'>4B{array.ndim}i', 0, 0, 8, array.ndim, *array.shape)
  path.write_bytes(gzip.compress(header + array.tobytes()))


def _read_idx(path, rank):
  content = gzip.decompress(path.read_bytes())
  shape = struct.unpack(f'>{rank}i', content[4 : 4 + 4 * rank])
  return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


@pytest.fixture
def raw_dir(tmp_path, monkeypatch):
  """A tiny Fashion-MNIST of 40 and 20 images, which TFDS takes for the set."""
  from tensorflow_datasets.core.download.checksums import UrlInfo
  from tensorflow_datasets.image_classification import mnist

  folder = tmp_path / 'raw'
  folder.mkdir()
  for prefix, total in (('train', 40), ('t10k', 20)):
    _write_idx(
      folder / f'{prefix}-images-idx3-ubyte.gz', _images(total, 28, 28)
    )
    labels = (np.arange(total) % 10).astype(np.uint8)
    _write_idx(folder / f'{prefix}-labels-idx1-ubyte.gz', labels)
  url_infos = {}
  for file in RAW_FILES:
    content = (folder / file).read_bytes()
    url_infos[mnist.FashionMNIST.URL + file] = UrlInfo(
      size=len(content),
      checksum=hashlib.sha256(content).hexdigest(),
      filename=file,
    )
  monkeypatch.setattr(mnist.FashionMNIST, 'url_infos', url_infos, raising=False)
  return folder


def _load_tiny(tmp_path, raw_dir=None):
  return data.load('fashion_mnist', dir=tmp_path / 'tfds', raw_dir=raw_dir)


def _version_dir(tmp_path):
  return tmp_path / 'tfds' / 'fashion_mnist' / '3.0.1'


def _rows(images, labels):
  """A multiset of images with their labels."""
  return collections.Counter(
    (image.tobytes(), int(label))
    for image, label in zip(images, labels, strict=True)
  )


def _assert_equal(a, b):
  assert a._replace(**dict.fromkeys(a._fields[1:5])) == b._replace(
    **dict.fromkeys(b._fields[1:5])
  )
  for left, right in zip(a[1:5], b[1:5], strict=True):
    np.testing.assert_array_equal(left, right, strict=True)


def _refuse(*args, **kwargs):
  raise AssertionError('must not be called')


# The digits.


def test_every_fourth_digit_is_in_the_test_split():
  from sklearn.datasets import load_digits

  digits = data.load('digits')
  assert digits.images.shape == (1348, 8, 8, 1)
  assert digits.test_images.shape == (449, 8, 8, 1)
  assert digits.images.dtype == digits.test_images.dtype == np.uint8
  target = load_digits().target
  np.testing.assert_array_equal(digits.test_labels, target[3::4])
  np.testing.assert_array_equal(digits.labels[:6], target[[0, 1, 2, 4, 5, 6]])
  np.testing.assert_array_equal(
    digits.test_images[0, :, :, 0],
    np.round(load_digits().images[3] * 255 / 16),
  )
  assert digits.images.max() == 255
  assert digits.label_names == tuple('0123456789')


def test_the_digest_sees_values_shapes_types_and_fields():
  images, labels = _images(6, 4, 4, 1), np.arange(6)
  base = data.Dataset('a', images, labels)
  changed = images.copy()
  changed[5, 3, 3, 0] ^= 1
  others = [
    base._replace(images=changed),
    base._replace(images=images.reshape(6, 2, 8, 1)),
    base._replace(images=images.view(np.int8)),
    base._replace(labels=None, test_labels=labels),
    base._replace(labels=np.array(list('abcdef'))),
  ]
  digests = {data.digest(other) for other in (base, *others)}
  assert len(digests) == 6
  assert data.digest(base._replace(name='b')) == data.digest(base)
  fortran = base._replace(images=np.asfortranarray(images))
  assert data.digest(fortran) == data.digest(base)
  assert data.digest(base._replace(files=('a',) * 6)) == data.digest(base)


# The MNIST family.


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
    assert _rows(images, labels) == _rows(
      _read_idx(raw_dir / f'{prefix}-images-idx3-ubyte.gz', 3),
      _read_idx(raw_dir / f'{prefix}-labels-idx1-ubyte.gz', 1),
    )
  assert capfd.readouterr() == ('', '')
  assert os.listdir(tmp_path / 'tfds') == ['fashion_mnist']


def test_a_second_load_reads_the_decoded_copy(tmp_path, raw_dir, monkeypatch):
  first = _load_tiny(tmp_path, raw_dir)
  monkeypatch.setattr(tfds, '_read_split', _refuse)
  monkeypatch.setattr(tfds, 'prepare', _refuse)
  _assert_equal(_load_tiny(tmp_path), first)


def test_the_folders_are_taken_from_the_environment(
  tmp_path, raw_dir, monkeypatch
):
  monkeypatch.setenv('JAXCLUST_RAW_DIR', str(raw_dir))
  data.load('fashion_mnist', dir='', raw_dir='')
  assert os.listdir(tmp_path / 'default') == ['fashion_mnist']


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-1000])


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 1
  path.write_bytes(content)


def _empty(path):
  path.write_bytes(b'')


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
    _truncate,
    _flip_a_bit,
    _empty,
    _of_another_version,
    _without_a_key,
    _pickled,
  ],
)
def test_a_damaged_copy_is_made_anew(tmp_path, raw_dir, damage, monkeypatch):
  first = _load_tiny(tmp_path, raw_dir)
  damage(_version_dir(tmp_path) / 'jaxclust.npz')
  _assert_equal(_load_tiny(tmp_path), first)
  monkeypatch.setattr(tfds, '_read_split', _refuse)
  _assert_equal(_load_tiny(tmp_path), first)


def test_a_copy_without_its_prepared_set_is_not_used(tmp_path, raw_dir):
  _load_tiny(tmp_path, raw_dir)
  folder = _version_dir(tmp_path)
  (folder / 'features.json').unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 does not hold a complete set'):
    _load_tiny(tmp_path, raw_dir)
  for path in folder.iterdir():
    if path.name != 'jaxclust.npz':
      path.unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 does not hold a complete set'):
    _load_tiny(tmp_path, raw_dir)


def test_a_read_only_folder_is_read_each_time(tmp_path, raw_dir, monkeypatch):
  first = _load_tiny(tmp_path, raw_dir)
  folder = _version_dir(tmp_path)
  (folder / 'jaxclust.npz').unlink()
  before = sorted(os.listdir(folder))

  def refuse(path, mode):
    if mode == 'rb':
      return open(path, mode)
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(tfds, 'open', refuse, raising=False)
  _assert_equal(_load_tiny(tmp_path), first)
  assert sorted(os.listdir(folder)) == before


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path, raw_dir, monkeypatch):
  def savez(file, **arrays):
    file.write(b'PK')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', savez)
  assert len(_load_tiny(tmp_path, raw_dir).images) == 40
  assert not list(_version_dir(tmp_path).glob('jaxclust*'))


@pytest.mark.parametrize('damage', [_truncate, _flip_a_bit])
@pytest.mark.parametrize('file', [RAW_FILES[0], RAW_FILES[2]])
def test_a_damaged_original_is_named_and_leaves_nothing(
  tmp_path, raw_dir, damage, file
):
  good = tmp_path / 'good'
  shutil.copytree(raw_dir, good)
  damage(raw_dir / file)
  content = (raw_dir / file).read_bytes()
  with pytest.raises(InputError) as caught:
    _load_tiny(tmp_path, raw_dir)
  message = str(caught.value)
  original = (good / file).read_bytes()
  assert str(raw_dir / file) in message
  for part in (original, content):
    assert str(len(part)) in message
    assert hashlib.sha256(part).hexdigest() in message
  assert '\n' not in message
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
  _assert_equal(_load_tiny(tmp_path, raw_dir), others[0])
  assert os.listdir(tmp_path / 'tfds' / 'fashion_mnist') == ['3.0.1']


def test_a_folder_that_cannot_be_made_is_named(tmp_path, raw_dir):
  (tmp_path / 'tfds').write_text('a file')
  with pytest.raises(InputError, match=r'cannot prepare .*/tfds.*data.dir'):
    _load_tiny(tmp_path, raw_dir)


def test_a_damaged_prepared_set_is_named(tmp_path, raw_dir):
  _load_tiny(tmp_path, raw_dir)
  folder = _version_dir(tmp_path)
  (folder / 'jaxclust.npz').unlink()
  (folder / 'fashion_mnist-test.array_record-00000-of-00001').unlink()
  with pytest.raises(InputError, match=r'3\.0\.1 cannot be .*delete it'):
    _load_tiny(tmp_path)


# Downloads.


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A proxy that answers for every host with the files of one folder."""
  folder = tmp_path / 'served'
  folder.mkdir()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self, body=True):
      path = folder / self.path.rsplit('/', 1)[1]
      self.send_response(200 if path.exists() else 404)
      content = path.read_bytes() if path.exists() else b''
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content if body else b'')

    do_HEAD = functools.partialmethod(do_GET, body=False)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as proxy:
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{proxy.server_port}')
    yield folder
    proxy.shutdown()
    thread.join()


def test_the_files_are_downloaded_where_there_are_none(
  tmp_path, raw_dir, server
):
  shutil.copytree(raw_dir, server, dirs_exist_ok=True)
  (raw_dir / RAW_FILES[1]).unlink()
  downloaded = _load_tiny(tmp_path, raw_dir)
  given = data.load('fashion_mnist', dir=tmp_path / 'b', raw_dir=server)
  _assert_equal(downloaded, given)


def test_a_download_that_is_not_the_file_leaves_nothing(
  tmp_path, raw_dir, server
):
  shutil.copytree(raw_dir, server, dirs_exist_ok=True)
  (server / RAW_FILES[3]).write_text('<html>Please log in</html>')
  with pytest.raises(InputError, match=f'{RAW_FILES[3]} is not the original'):
    _load_tiny(tmp_path)
  (server / RAW_FILES[3]).unlink()
  with pytest.raises(InputError, match=r'does not send them: .*404'):
    _load_tiny(tmp_path)
  assert not (tmp_path / 'tfds').exists()


def _assert_lists_the_ways_out(message):
  for way in (':digits', '--config.data.raw_dir=', '--config.data.dir='):
    assert way in message
  for way in ('$JAXCLUST_RAW_DIR', 'network', *RAW_FILES):
    assert way in message
  assert '\n' not in message


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
  _assert_lists_the_ways_out(str(caught.value))
  assert f'{tmp_path} lacks its files' in str(caught.value)
  assert f'{host} does not send them' in str(caught.value)
  assert not (tmp_path / 'tfds').exists()


def test_a_host_that_never_answers_is_left_within_ten_seconds(
  tmp_path, monkeypatch
):
  over = threading.Event()
  monkeypatch.setattr('requests.head', lambda *a, **k: over.wait(60))
  monkeypatch.setattr('requests.get', _refuse)
  start = time.monotonic()
  with pytest.raises(InputError, match='no answer within') as caught:
    _load_tiny(tmp_path)
  assert time.monotonic() - start < 9
  over.set()
  _assert_lists_the_ways_out(str(caught.value))


# Other sets of TFDS.


def _png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, format='png')
  file.seek(0)
  return file


def _prepare_flowers(data_dir, splits, version='1.0.0'):
  """Prepares a small colour set from {split: images}; labels count up."""
  import tensorflow_datasets as tfds

  class Flowers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      features = {
        'coarse': tfds.features.ClassLabel(names=['x']),
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.ClassLabel(names=['rose', 'tulip', 'lily']),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
      )

    def _split_generators(self, dl_manager):
      return {k: self._generate_examples(v) for k, v in splits.items()}

    def _generate_examples(self, images):
      for row, image in enumerate(images):
        yield row, {'coarse': 0, 'image': _png(image), 'label': row % 3}

  with data.tfds._quiet():
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


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_any_prepared_set_of_images_is_read(tmp_path, file_format):
  train, test = _images(7, 6, 5, 3), _images(4, 6, 5, 3, seed=1)
  folder = _prepare_flowers(tmp_path, {'train': train, 'test': test})
  if file_format == 'tfrecord':
    _to_tfrecord(folder)
  dataset = data.load('flowers', dir=tmp_path)
  assert dataset.label_names == ('rose', 'tulip', 'lily')
  assert _rows(dataset.images, dataset.labels) == _rows(train, np.arange(7) % 3)
  assert _rows(dataset.test_images, dataset.test_labels) == _rows(
    test, np.arange(4) % 3
  )
  _assert_equal(data.load('flowers', dir=tmp_path), dataset)


def test_a_tfrecord_file_that_ends_early_is_named(tmp_path):
  folder = _prepare_flowers(tmp_path, {'train': _images(7, 6, 5, 3)})
  _to_tfrecord(folder)
  (path,) = folder.glob('*.tfrecord-*')
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(InputError, match=r'1\.0\.0 cannot be read .*00001 ends'):
    data.load('flowers', dir=tmp_path)
  path.write_bytes(path.read_bytes()[:0])
  with pytest.raises(InputError, match='holds 0 of 7 images'):
    data.load('flowers', dir=tmp_path)


def test_validation_is_the_test_split_where_there_is_no_other(tmp_path):
  images = _images(3, 6, 5, 3, seed=1)
  splits = {'train': _images(7, 6, 5, 3), 'validation': images}
  _prepare_flowers(tmp_path, splits)
  dataset = data.load('flowers', dir=tmp_path)
  assert _rows(dataset.test_images, dataset.test_labels) == _rows(
    images, np.arange(3)
  )


def test_a_set_without_a_test_split_has_none(tmp_path):
  _prepare_flowers(tmp_path, {'train': _images(7, 6, 5, 3)})
  dataset = data.load('flowers', dir=tmp_path)
  assert dataset.test_images is None
  assert dataset.test_labels is None
  _assert_equal(data.load('flowers', dir=tmp_path), dataset)


def test_of_several_features_the_first_in_name_is_taken():
  features = {'fine': 1, 'coarse': 2, 'image': 'x'}
  assert tfds._find_feature(features, int, 'label') == 'coarse'
  assert tfds._find_feature(features, int, 'fine') == 'fine'
  assert tfds._find_feature(features, float, 'label') is None


def test_a_prepared_set_without_a_train_split_is_refused(tmp_path):
  _prepare_flowers(tmp_path, {'extra': _images(7, 6, 5, 3)})
  with pytest.raises(InputError, match=r"splits \['extra'\]: it needs"):
    data.load('flowers', dir=tmp_path)


def test_images_of_differing_size_are_refused_unless_they_are_resized(tmp_path):
  images = [*_images(7, 6, 5, 3), *_images(1, 6, 4, 3)]
  _prepare_flowers(tmp_path, {'train': images})
  told = r'image \d of the train split .*resize all with --config.data.size='
  with pytest.raises(InputError, match=told):
    data.load('flowers', dir=tmp_path)
  dataset = data.load('flowers', dir=tmp_path, size=(6, 5))
  assert dataset.images.shape == (8, 6, 5, 3)
  found = _rows(dataset.images, dataset.labels)
  assert not _rows(images[:7], np.arange(7) % 3) - found
  with pytest.raises(InputError, match=told):  # no copy was kept of these
    data.load('flowers', dir=tmp_path)


def test_the_copy_of_a_prepared_set_has_its_own_size(tmp_path):
  images = _images(7, 6, 5, 3)
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
  assert _rows(dataset.images, dataset.labels) == _rows(
    images, np.arange(7) % 3
  )


def test_the_newest_version_is_read(tmp_path):
  for version, total in (('9.0.0', 3), ('10.0.0', 4)):
    splits = {'train': _images(total, 6, 5, 3)}
    _prepare_flowers(tmp_path, splits, version)
  assert len(data.load('flowers', dir=tmp_path).images) == 4


def test_a_configuration_of_a_set_is_read_by_its_name(tmp_path):
  folder = _prepare_flowers(tmp_path, {'train': _images(7, 6, 5, 3)})
  shutil.move(folder, tmp_path / 'flowers' / 'small' / '1.0.0')
  assert len(data.load('flowers/small', dir=tmp_path).images) == 7
  with pytest.raises(InputError, match="nearest is 'flowers/small'"):
    data.load('flowers', dir=tmp_path)


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
  for name in ('fashion-mnist', 'fasion_mnist'):
    with pytest.raises(InputError, match="nearest is 'fashion_mnist'"):
      data.load(name, dir=tmp_path)
  with pytest.raises(InputError, match=f'digits.*{tmp_path}.*folder of images'):
    data.load('', dir=tmp_path)
  assert not os.listdir(tmp_path)


# An .npz file.


def _savez(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def test_an_npz_is_loaded_as_it_was_saved(tmp_path):
  arrays = {
    'images': _images(6, 27, 31, 3),
    'labels': np.array([3, -1, 3, 9, 0, 0]),
    'test_images': _images(2, 27, 31, 3),
    'test_labels': np.array([3, 9]),
  }
  path = _savez(tmp_path / 'a.npz', **arrays)
  _assert_equal(data.load(path), data.Dataset(path, **arrays))
  other = tmp_path / 'no_suffix'
  shutil.copy(path, other)
  np.testing.assert_array_equal(data.load(str(other)).images, arrays['images'])


def test_images_without_channels_get_one(tmp_path):
  images = _images(6, 4, 5)
  path = _savez(tmp_path / 'a.npz', images=images, test_images=images[:2])
  dataset = data.load(path)
  np.testing.assert_array_equal(dataset.images, images[..., None])
  assert dataset.test_images.shape == (2, 4, 5, 1)
  assert dataset.labels is dataset.test_labels is None


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floats_become_float32(tmp_path, dtype):
  images = np.random.default_rng(0).normal(size=(6, 4, 5, 1)).astype(dtype)
  path = _savez(tmp_path / 'a.npz', images=images)
  told = 'are float64 and are cast to float32'
  casts = dtype == np.float64
  with pytest.warns(match=told) if casts else contextlib.nullcontext():
    loaded = data.load(path).images
  np.testing.assert_array_equal(loaded, images.astype(np.float32), strict=True)


def test_labels_may_be_strings(tmp_path):
  labels = np.array(['b', 'a'])
  path = _savez(tmp_path / 'a.npz', images=_images(2, 4, 4), labels=labels)
  np.testing.assert_array_equal(data.load(path).labels, labels, strict=True)


def _not_finite(value):
  images = np.zeros((6, 4, 5))
  images[2, 1, 3] = images[4, 0, 0] = value
  return images


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'image': _images(6, 4, 4)}, r"keys \['image'\]: it must hold images"),
    ({'images': _images(6, 4, 4), 'label': np.arange(6)}, "'label'"),
    ({'images': _images(6, 16)}, r'images .*\(6, 16\): expected \[N, H, W\]'),
    ({'images': _images(0, 4, 4)}, r'images .*\(0, 4, 4\), an empty split'),
    ({'images': _images(6, 4, 4).astype(int)}, 'int64: convert them to uint8'),
    ({'images': _not_finite(np.nan)}, r'2 values .* first at \[2, 1, 3\]'),
    ({'images': _not_finite(-np.inf)}, r'2 values .* first at \[2, 1, 3\]'),
    ({'images': _not_finite(1e300)}, r'2 values .* first at \[2, 1, 3\]'),
    (
      {'images': _images(6, 4, 4), 'labels': np.arange(5)},
      r'labels .*\(5,\): 6 images need \(6,\)',
    ),
    (
      {'images': _images(6, 4, 4), 'labels': np.zeros((6, 1), int)},
      r'labels .*\(6, 1\): 6 images need \(6,\)',
    ),
    ({'images': _images(6, 4, 4), 'labels': np.ones(6)}, 'labels .* float64'),
    (
      {'images': _images(6, 4, 4), 'test_images': _images(6, 4, 5)},
      r'test_images .*\(4, 5, 1\).*\(4, 4, 1\)',
    ),
    (
      {'images': _images(6, 4, 4), 'test_images': _images(0, 4, 4)},
      'test_images .* an empty split',
    ),
    (
      {'images': _images(6, 4, 4), 'test_labels': np.arange(6)},
      'test_labels .* without their images',
    ),
    (
      {'images': np.array([[[object()]]])},
      r'a\.npz cannot be read as .npz .*pickle',
    ),
  ],
)
def test_an_npz_that_cannot_be_used_says_why(tmp_path, arrays, message):
  with pytest.raises(InputError, match=message) as caught:
    data.load(_savez(tmp_path / 'a.npz', **arrays))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('damage', [_truncate, _flip_a_bit, _empty])
def test_a_damaged_npz_is_named(tmp_path, damage):
  path = tmp_path / 'a.npz'
  np.savez(path, images=_images(60, 8, 8))
  damage(path)
  with pytest.raises(InputError, match=r'a\.npz cannot be read'):
    data.load(str(path))


def test_what_is_no_npz_is_named(tmp_path):
  with pytest.raises(InputError, match=r'b\.npz does not exist'):
    data.load(str(tmp_path / 'b.npz'))
  np.save(tmp_path / 'c', _images(6, 4, 4))
  shutil.move(tmp_path / 'c.npy', tmp_path / 'c.npz')
  with pytest.raises(InputError, match=r'c\.npz cannot be read'):
    data.load(str(tmp_path / 'c.npz'))


# An .npy file.


@pytest.mark.parametrize('shape', [(6, 4, 5), (6, 4, 5, 3)])
def test_an_npy_holds_images_alone(tmp_path, shape):
  images = np.asfortranarray(_images(*shape))
  np.save(tmp_path / 'a.npy', images)
  dataset = data.load(str(tmp_path / 'a.npy'))
  np.testing.assert_array_equal(
    dataset.images, images.reshape(*shape[:3], -1), strict=True
  )
  assert not isinstance(dataset.images, np.memmap)
  assert dataset.labels is dataset.test_images is None
  assert dataset.files == ()


def _npz(path):
  with open(path, 'wb') as file:
    np.savez(file, images=_images(6, 4, 4))


def _objects(path):
  np.save(path, np.array([[[object()]]]), allow_pickle=True)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_truncate, 'cannot be read as .npy'),
    (_empty, 'cannot be read as .npy'),
    (_npz, 'cannot be read as .npy'),
    (_objects, 'cannot be read as .npy .*object'),
    (Path.unlink, 'does not exist'),
    (lambda path: np.save(path, _images(0, 4, 4)), 'an empty split'),
    (lambda path: np.save(path, np.arange(6)), r'\(6,\): expected \[N, H, W\]'),
    (lambda path: np.save(path, _not_finite(np.nan)), '2 values .* not finite'),
  ],
)
def test_an_npy_that_cannot_be_used_says_why(tmp_path, damage, message):
  path = tmp_path / 'a.npy'
  np.save(path, _images(60, 8, 8))
  damage(path)
  with pytest.raises(InputError, match=message):
    data.load(str(path))


def test_an_npy_that_promises_more_than_it_holds_fills_no_memory(tmp_path):
  path = tmp_path / 'a.npy'
  with open(path, 'wb') as file:
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (2**31, 8, 8)}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(bytes(64))
  start = time.monotonic()
  with pytest.raises(InputError, match=r'cannot be read as \.npy'):
    data.load(str(path))
  assert time.monotonic() - start < 1


def test_what_unpacks_to_more_than_half_of_the_memory_is_not_read(
  tmp_path, monkeypatch
):
  images = np.zeros((100, 64, 64), np.uint8)
  np.savez_compressed(tmp_path / 'a.npz', images=images)
  assert (tmp_path / 'a.npz').stat().st_size < images.nbytes / 100
  np.save(tmp_path / 'a.npy', images)
  for row in range(4):
    _save(tmp_path / 'images' / f'{row}.png', images[0])
  sizes = {'a.npz': images.nbytes, 'a.npy': images.nbytes, 'images': 4 * 64**2}
  for name, size in sizes.items():
    path = str(tmp_path / name)
    monkeypatch.setattr(arrays, 'host_bytes', lambda size=size: 2 * size - 2)
    with pytest.raises(InputError, match=f'{name} unpacks to .* half of the'):
      data.load(path)
    monkeypatch.setattr(arrays, 'host_bytes', lambda size=size: 2 * size + 1000)
    assert data.load(path).images.shape[1:] == (64, 64, 1)
    with pytest.raises(InputError, match=f'{name} unpacks to'):
      data.load(path, size=(64, 80))
  monkeypatch.setattr(arrays, 'host_bytes', lambda: 2 * 64**2 - 2)
  with pytest.raises(InputError, match=r'/0.png unpacks to'):
    data.load(str(tmp_path / 'images'), size=1)


def test_the_memory_is_what_a_container_or_a_limit_leaves(
  tmp_path, monkeypatch
):
  (tmp_path / 'max').write_text('max\n')
  (tmp_path / 'limit').write_text('1000000\n')
  names = (tmp_path / 'max', tmp_path / 'none')
  monkeypatch.setattr(memory, '_CONTAINER_LIMITS', names)
  whole = memory.host_bytes()
  assert whole > 2**28
  names = (tmp_path / 'max', tmp_path / 'limit')
  monkeypatch.setattr(memory, '_CONTAINER_LIMITS', names)
  assert memory.host_bytes() == 1_000_000
  monkeypatch.setattr(
    memory.resource, 'getrlimit', lambda kind: (900_000, 1_000_000)
  )
  assert memory.host_bytes() == 900_000


BOMB = """
import resource, sys
import jaxclust.data
from jaxclust.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
for path in sys.argv[1:]:
  try:
    jaxclust.data.load(path)
  except InputError as error:
    print(error)
"""


def _npz_of_nothing(path, shape):
  """An .npz whose array is said to have a shape, and holds no bytes."""
  header = io.BytesIO()
  described = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(header, described)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('images.npy', header.getvalue())


def _npz_bomb(path, num_bytes):
  """An .npz of so many zeros, in a thousandth of that."""
  header = io.BytesIO()
  shape = (num_bytes >> 20, 1024, 1024)
  described = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(header, described)
  with (
    zipfile.ZipFile(
      path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive,
    archive.open('images.npy', 'w', force_zip64=True) as file,
  ):
    file.write(header.getvalue())
    block = bytes(2**24)
    for _ in range(num_bytes // len(block)):
      file.write(block)


def _png_bomb(path, width, height):
  """A PNG that is said to have a size, and has no line."""
  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  content = b'\x89PNG\r\n\x1a\n'
  for kind, body in ((b'IHDR', header), (b'IDAT', b'')):
    checksum = zlib.crc32(kind + body)
    content += struct.pack('>I', len(body)) + kind + body
    content += struct.pack('>I', checksum)
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)


@pytest.mark.slow
def test_bombs_and_absurd_headers_end_in_an_error_within_8_gib(tmp_path):
  _npz_of_nothing(tmp_path / 'long.npz', (2**62, 1, 1))
  _npz_of_nothing(tmp_path / 'large.npz', (2**36, 28, 28))
  _npz_of_nothing(tmp_path / 'negative.npz', (-5, 28, 28))
  _npz_bomb(tmp_path / 'bomb.npz', 2**32 + 2**24)
  _png_bomb(tmp_path / 'one' / '0.png', 2**31 - 1, 2**31 - 1)
  for row in range(60):
    _png_bomb(tmp_path / 'many' / f'{row}.png', 9_000, 9_000)
  names = ['long.npz', 'large.npz', 'negative.npz', 'bomb.npz', 'one', 'many']
  done = subprocess.run(
    [sys.executable, '-c', BOMB, *(str(tmp_path / name) for name in names)],
    capture_output=True,
    text=True,
    check=True,
  )
  told = done.stdout.splitlines()
  assert len(told) == len(names)
  for name, line in zip(names, told, strict=True):
    assert line.startswith(str(tmp_path / name))
  assert 'unpacks to 4.02 GiB' in told[3]
  assert 'unpacks to 4.53 GiB' in told[5]


def test_what_lies_in_an_archive_stays_there(tmp_path):
  path = tmp_path / 'in' / 'a.npz'
  path.parent.mkdir()
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('images.npy', '../../out.npy', '/tmp/out.npy'):
      with archive.open(name, 'w') as file:
        np.save(file, _images(6, 4, 4))
  with pytest.raises(InputError, match=r"holds the keys \['\.\./\.\./out"):
    data.load(str(path))
  assert list(tmp_path.rglob('*')) == [path.parent, path]


def test_a_member_that_is_no_array_is_named(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('images', b'no array')
  with pytest.raises(InputError, match=r'images of .*a\.npz is not an array'):
    data.load(str(tmp_path / 'a.npz'))


# A folder of images.


def _save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def test_the_sub_folders_of_a_folder_are_its_labels(tmp_path):
  images = _images(4, 6, 5)
  for name, image in zip(
    ['dog/2.png', 'cat/z.PNG', 'dog/1.png', 'ant/x/1.png'], images, strict=True
  ):
    _save(tmp_path / name, image)
  for name in ('dog/.3.png', '.git/4.png'):
    _save(tmp_path / name, images[0])
  (tmp_path / 'notes.txt').write_text('no image')
  dataset = data.load(str(tmp_path))
  np.testing.assert_array_equal(
    dataset.images, images[[3, 1, 2, 0], :, :, None], strict=True
  )
  np.testing.assert_array_equal(dataset.labels, [0, 1, 2, 2])
  assert dataset.label_names == ('ant', 'cat', 'dog')
  assert dataset.files == ('ant/x/1.png', 'cat/z.PNG', 'dog/1.png', 'dog/2.png')
  assert dataset.test_images is None


def test_a_flat_folder_has_no_labels(tmp_path):
  for row, image in enumerate(_images(3, 6, 5)):
    _save(tmp_path / f'{row}.jpg', image)
  dataset = data.load(str(tmp_path))
  assert dataset.images.shape == (3, 6, 5, 1)
  assert dataset.labels is None
  assert dataset.label_names == ()
  assert dataset.files == ('0.jpg', '1.jpg', '2.jpg')


@pytest.mark.parametrize('channels', [3, 4])
def test_colours_are_kept(tmp_path, channels):
  images = _images(2, 6, 5, channels)
  for row, image in enumerate(images):
    _save(tmp_path / f'{row}.png', image)
  np.testing.assert_array_equal(data.load(str(tmp_path)).images, images)


def test_mixed_modes_become_rgb(tmp_path):
  grey, colour = _images(6, 5), _images(6, 5, 3)
  _save(tmp_path / 'a.png', grey)
  _save(tmp_path / 'b.png', colour)
  expected = np.stack([np.repeat(grey[..., None], 3, axis=2), colour])
  np.testing.assert_array_equal(data.load(str(tmp_path)).images, expected)


@pytest.mark.parametrize(
  ('orientation', 'turn'),
  [
    (1, lambda image: image),
    (3, lambda image: image[::-1, ::-1]),
    (6, lambda image: np.rot90(image, -1)),
    (8, lambda image: np.rot90(image, 1)),
  ],
)
def test_an_image_is_turned_as_its_camera_says(tmp_path, orientation, turn):
  image = _images(6, 5)
  exif = Image.Exif()
  exif[274] = orientation
  Image.fromarray(image).save(tmp_path / 'a.png', exif=exif)
  found = data.load(str(tmp_path)).images
  np.testing.assert_array_equal(found[0, ..., 0], turn(image))


def _cut(path):
  path.write_bytes(path.read_bytes()[:-40])


def _no_image(path):
  path.write_text('no image')


def _program(path):
  """PostScript, which Pillow has another program run."""
  path.write_text(
    '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\nshowpage\n'
  )


def _resize(path):
  _save(path, _images(5, 6))


def _sixteen_bits(path):
  _save(path, _images(6, 5).astype(np.uint16))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_cut, r'0\.png cannot be read as PNG'),
    (_no_image, r'0\.png cannot be read as PNG'),
    (_program, r'0\.png cannot be read as PNG'),
    (
      _resize,
      r'0\.png has 5x6 pixels .* 6x5: resize .*--config.data.size=\(6, 5\)$',
    ),
    (_sixteen_bits, r'0\.png has mode I;16'),
  ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path, damage, message):
  for row, image in enumerate(_images(4, 6, 5)):
    _save(tmp_path / f'{row}.png', image)
  damage(tmp_path / '0.png')
  with pytest.raises(InputError, match=message):
    data.load(str(tmp_path))


def test_an_image_beside_the_labels_is_named(tmp_path):
  _save(tmp_path / 'a' / '0.png', _images(6, 5))
  _save(tmp_path / 'b.png', _images(6, 5))
  with pytest.raises(InputError, match=r'b\.png lies beside the sub-folders'):
    data.load(str(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'holds no \.png'):
    data.load(str(tmp_path))


# Other sizes.


def test_resizing_is_antialiased_as_by_hand(tmp_path):
  """Along a row the weights of the triangle are 3/7, 3/7 and 1/7."""
  row = np.array([[7, 7, 7, 0], [0, 0, 0, 7]])
  images = np.repeat(row[:, None], 4, axis=1)
  expected = np.repeat(np.array([[7, 4], [0, 3]])[:, None], 2, axis=1)
  for scale, dtype in ((30, np.uint8), (1 / 7, np.float32)):
    np.save(tmp_path / 'a.npy', (scale * images).astype(dtype))
    found = data.load(str(tmp_path / 'a.npy'), size=2).images
    assert found.dtype == dtype
    np.testing.assert_allclose(found[..., 0], scale * expected, rtol=1e-6)


@pytest.mark.parametrize('size', [2, 5, 9])
def test_resized_floats_stay_in_their_range(tmp_path, size):
  images = np.random.default_rng(0).random((8, 5, 5, 2)).round()
  np.save(tmp_path / 'a.npy', images.astype(np.float32))
  found = data.load(str(tmp_path / 'a.npy'), size=size).images
  assert found.shape == (8, size, size, 2)
  assert found.min() >= 0
  assert found.max() <= 1


def test_images_of_a_folder_are_resized_each(tmp_path):
  images = [_images(6, 5, 3), _images(4, 4, 3), _images(9, 2)]
  for name, image in zip('abc', images, strict=True):
    _save(tmp_path / f'{name}.png', image)
  dataset = data.load(str(tmp_path), size=(4, 4))
  assert dataset.images.shape == (3, 4, 4, 3)
  np.testing.assert_array_equal(dataset.images[1], images[1])
  for row, image in (
    (0, images[0]),
    (2, np.repeat(images[2][..., None], 3, 2)),
  ):
    np.save(tmp_path / 'a.npy', image[None])
    alone = data.load(str(tmp_path / 'a.npy'), size=4).images[0]
    np.testing.assert_array_equal(dataset.images[row], alone)


def test_both_splits_are_resized(tmp_path):
  images, test_images = _images(6, 4, 4), _images(3, 5, 7)
  arrays = {'images': images, 'test_images': test_images}
  path = _savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(InputError, match=r'one size with --config.data.size='):
    data.load(path)
  dataset = data.load(path, size=(4, 4))
  np.testing.assert_array_equal(dataset.images[..., 0], images)
  assert dataset.test_images.shape == (3, 4, 4, 1)


@pytest.mark.parametrize('size', [None, (), 8, (8,), (8, 8), [8, 8]])
def test_a_size_that_images_have_changes_nothing(size):
  _assert_equal(data.load('digits', size=size), data.load('digits'))


def test_height_comes_before_width():
  assert data.load('digits', size=(3, 5)).images.shape[1:] == (3, 5, 1)
  assert data.load('digits', size=(3, 5)).test_images.shape[1:] == (3, 5, 1)


@pytest.mark.parametrize(
  ('size', 'message'),
  [
    (0, 'each of config.data.size is 0'),
    ((8, -1), 'each of config.data.size is -1'),
    ((8.0, 8), 'each of config.data.size is 8.0'),
    ('8x8', "each of config.data.size is '8x8'"),
    ((8, 8, 3), r'\(8, 8, 3\): it must be \(height, width\)'),
  ],
)
def test_a_size_that_is_none_is_refused(size, message):
  with pytest.raises(InputError, match=message):
    data.load('digits', size=size)


# Other channels.


def test_grey_becomes_colour_and_colour_that_is_grey_becomes_grey():
  grey, colour = _images(4, 6, 5, 1), _images(2, 6, 5, 3)
  repeated = np.concatenate([grey, grey, grey], axis=3)
  for images in (grey, repeated):
    for channels, expected in ((1, grey), (3, repeated)):
      dataset = data.Dataset('a', images, test_images=images[:2])
      found = data.with_channels(dataset, channels)
      np.testing.assert_array_equal(found.images, expected, strict=True)
      np.testing.assert_array_equal(found.test_images, expected[:2])
  lonely = data.Dataset('a', colour)
  assert data.with_channels(lonely, 3).images is colour
  assert data.with_channels(lonely, 3).test_images is None


@pytest.mark.parametrize(('found', 'wanted'), [(3, 1), (4, 3), (1, 2), (3, 4)])
def test_channels_that_cannot_be_had_are_refused(found, wanted):
  dataset = data.Dataset('a', _images(2, 6, 5, 1).repeat(found, axis=3))
  dataset.images[1, 2, 3, found - 1] ^= 1
  told = f'images have {found} channels, and {wanted} are needed'
  with pytest.raises(InputError, match=told):
    data.with_channels(dataset, wanted)


# IDX and TFRecord files.


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'does not start an IDX file'),
    (b'\0\0\x08', 'does not start an IDX file'),
    (b'\0\0\x08\0', 'does not start an IDX file'),
    (
      b'\0\0\x0d\x01\0\0\0\x01abcd',
      '00000d01 does not start an IDX',
    ),
    (b'\0\0\x08\x02\0\0\0\x01', 'does not start an IDX file'),
    (b'\0\0\x08\x01\0\0\0\x03ab', r'size 2 into shape \(3,\)'),
    (b'\0\0\x08\x01\0\0\0\x03abcd', r'size 4 into shape \(3,\)'),
    (b'\0\0\x08\x04' + 16 * b'\xff', 'size 0 into shape'),
  ],
)
def test_what_is_no_idx_file_says_why(content, message):
  with pytest.raises(ValueError, match=message):
    originals._parse_idx(content)


def test_an_idx_file_by_hand():
  content = b'\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef'
  array = originals._parse_idx(content)
  np.testing.assert_array_equal(array, [[97, 98, 99], [100, 101, 102]])
  assert array.dtype == np.uint8


def test_a_record_of_absurd_length_is_not_read(tmp_path):
  path = tmp_path / 'a.tfrecord'
  path.write_bytes(struct.pack('<Q4x', 2**62) + b'some')
  with pytest.raises(EOFError, match='ends within a record'):
    list(tfds._tfrecords(path))


# The whole.


def test_importing_the_module_loads_no_library_of_a_source():
  code = (
    'import sys, jaxclust.data; print([name for name in sys.modules if name in '
    "('tensorflow_datasets', 'sklearn', 'PIL', 'requests', 'tensorflow')])"
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert run.stdout == '[]\n'


@pytest.mark.slow
@pytest.mark.skipif(not RAW_DIR, reason='JAXCLUST_RAW_DIR is not set')
def test_two_processes_prepare_fashion_mnist_from_its_files(tmp_path):
  code = (
    'import sys; from jaxclust import data; '
    "dataset = data.load('fashion_mnist', dir=sys.argv[1], raw_dir=sys.argv[2])"
    '; print(data.digest(dataset))'
  )
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', code, tmp_path, RAW_DIR],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  outputs = {run.communicate() for run in runs}
  start = time.monotonic()
  dataset = data.load('fashion_mnist', dir=tmp_path)
  assert time.monotonic() - start < 1
  assert outputs == {(data.digest(dataset) + '\n', '')}
  for prefix, images, labels, total in (
    ('train', dataset.images, dataset.labels, 60000),
    ('t10k', dataset.test_images, dataset.test_labels, 10000),
  ):
    assert images.shape == (total, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(labels), total // 10)
    assert _rows(images, labels) == _rows(
      _read_idx(Path(RAW_DIR) / f'{prefix}-images-idx3-ubyte.gz', 3),
      _read_idx(Path(RAW_DIR) / f'{prefix}-labels-idx1-ubyte.gz', 1),
    )

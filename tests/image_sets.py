"""Image sets, and damages of files, that tests of several modules share."""

import collections
import gzip
import hashlib
import struct
import types

import numpy as np
from PIL import Image

ORIGINALS = (
  't10k-images-idx3-ubyte.gz',
  't10k-labels-idx1-ubyte.gz',
  'train-images-idx3-ubyte.gz',
  'train-labels-idx1-ubyte.gz',
)


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def assert_equal(a, b):
  """Asserts that two datasets have the same fields."""
  for left, right in zip(a, b, strict=True):
    if isinstance(left, np.ndarray):
      np.testing.assert_array_equal(left, right, strict=True)
    else:
      assert left == right


def count_rows(images, labels):
  """Returns a multiset of images with their labels."""
  return collections.Counter(
    (image.tobytes(), int(label))
    for image, label in zip(images, labels, strict=True)
  )


def forbid(*args, **kwargs):
  raise AssertionError('must not be called')


def isolate(monkeypatch, folder):
  """Hides the sets and original files of this machine, and its network."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(folder))
  monkeypatch.delenv('JAXCLUST_RAW_DIR', raising=False)
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
  monkeypatch.setenv('no_proxy', '')


def write_originals(folder, base_url):
  """Writes the files of a tiny set of the MNIST family: 40 and 20 images.

  Returns:
    What TFDS knows of the files, by URL.
  """
  folder.mkdir()
  for prefix, total in (('train', 40), ('t10k', 20)):
    labels = (np.arange(total) % 10).astype(np.uint8)
    _write_idx(folder / f'{prefix}-labels-idx1-ubyte.gz', labels)
    images = random_images(total, 28, 28)
    _write_idx(folder / f'{prefix}-images-idx3-ubyte.gz', images)
  url_infos = {}
  for file in ORIGINALS:
    content = (folder / file).read_bytes()
    url_infos[base_url + file] = types.SimpleNamespace(
      size=len(content),
      checksum=hashlib.sha256(content).hexdigest(),
      filename=file,
    )
  return url_infos


def _write_idx(path, array):
  header = struct.pack(f'>4B{array.ndim}i', 0, 0, 8, array.ndim, *array.shape)
  path.write_bytes(gzip.compress(header + array.tobytes()))


def read_idx(path, rank):
  content = gzip.decompress(path.read_bytes())
  shape = struct.unpack(f'>{rank}i', content[4 : 4 + 4 * rank])
  return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def savez(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def save(path, image):
  """Writes an image file, and the folder that it is in."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def not_finite(value):
  images = np.zeros((6, 4, 5))
  images[2, 1, 3] = images[4, 0, 0] = value
  return images


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 1
  path.write_bytes(content)


def empty(path):
  path.write_bytes(b'')

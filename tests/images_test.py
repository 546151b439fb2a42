"""Arrays of images: checks, sizes, channels, memory and the digest."""

import contextlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from image_sets import (
  assert_equal,
  empty,
  flip_a_bit,
  not_finite,
  random_images,
  save,
  savez,
  truncate,
)

from jaxclust import data
from jaxclust.data import images as arrays
from jaxclust.errors import InputError

IMAGES = random_images(6, 4, 4)


def test_importing_the_package_loads_no_library_of_a_source():
  code = (
    'import sys, jaxclust.data; print([name for name in sys.modules if name in '
    "('tensorflow_datasets', 'sklearn', 'PIL', 'requests', 'tensorflow')])"
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, check=True, text=True
  )
  assert run.stdout == '[]\n'


def test_the_digest_sees_values_shapes_types_and_fields():
  images, labels = random_images(6, 4, 4, 1), np.arange(6)
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


def test_images_without_channels_get_one(tmp_path):
  images = random_images(6, 4, 5)
  path = savez(tmp_path / 'a.npz', images=images, test_images=images[:2])
  dataset = data.load(path)
  np.testing.assert_array_equal(dataset.images, images[..., None])
  assert dataset.test_images.shape == (2, 4, 5, 1)
  assert dataset.labels is dataset.test_labels is None


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floats_become_float32(tmp_path, dtype):
  images = np.random.default_rng(0).normal(size=(6, 4, 5, 1)).astype(dtype)
  path = savez(tmp_path / 'a.npz', images=images)
  told = 'are float64 and are cast to float32'
  casts = dtype == np.float64
  with pytest.warns(match=told) if casts else contextlib.nullcontext():
    loaded = data.load(path).images
  np.testing.assert_array_equal(loaded, images.astype(np.float32), strict=True)


def test_labels_may_be_strings(tmp_path):
  labels = np.array(['b', 'a'])
  path = savez(tmp_path / 'a.npz', images=random_images(2, 4, 4), labels=labels)
  np.testing.assert_array_equal(data.load(path).labels, labels, strict=True)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'image': IMAGES}, r"keys \['image'\]: it must hold images"),
    ({'images': IMAGES, 'label': np.arange(6)}, "'label'"),
    ({'images': IMAGES[0]}, r'images .*\(4, 4\): expected \[N, H, W\]'),
    ({'images': IMAGES[:0]}, r'images .*\(0, 4, 4\), an empty split'),
    ({'images': IMAGES.astype(int)}, 'int64: convert them to uint8'),
    (
      {'images': np.zeros((2, 3, 32, 32), np.uint8)},
      r'channels first: give \[N, H, W, C\], as images.transpose',
    ),
    ({'images': not_finite(np.nan)}, r'2 values .* first at \[2, 1, 3\]'),
    ({'images': not_finite(-np.inf)}, r'2 values .* first at \[2, 1, 3\]'),
    ({'images': not_finite(1e300)}, r'2 values .* first at \[2, 1, 3\]'),
    (
      {'images': IMAGES, 'labels': np.arange(5)},
      r'labels .*\(5,\): 6 images need \(6,\)',
    ),
    (
      {'images': IMAGES, 'labels': np.zeros((6, 1), int)},
      r'labels .*\(6, 1\): 6 images need \(6,\)',
    ),
    ({'images': IMAGES, 'labels': np.ones(6)}, 'labels .* float64'),
    (
      {'images': IMAGES, 'test_images': IMAGES[:, 1:]},
      r'test_images .*\(3, 4, 1\).*\(4, 4, 1\)',
    ),
    ({'images': IMAGES, 'test_images': IMAGES[:0]}, 'test_images .* an empty'),
    (
      {'images': IMAGES, 'test_labels': np.arange(6)},
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
    data.load(savez(tmp_path / 'a.npz', **arrays))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, empty])
def test_a_damaged_npz_is_named(tmp_path, damage):
  path = tmp_path / 'a.npz'
  np.savez(path, images=random_images(60, 8, 8))
  damage(path)
  with pytest.raises(InputError, match=r'a\.npz cannot be read'):
    data.load(str(path))


def test_a_file_that_is_not_an_npz_is_named(tmp_path):
  with pytest.raises(InputError, match=r'b\.npz does not exist'):
    data.load(str(tmp_path / 'b.npz'))
  np.save(tmp_path / 'c', random_images(6, 4, 4))
  shutil.move(tmp_path / 'c.npy', tmp_path / 'c.npz')
  with pytest.raises(InputError, match=r'c\.npz cannot be read'):
    data.load(str(tmp_path / 'c.npz'))


def test_a_member_that_is_not_an_array_is_named(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr('images', b'no array')
  with pytest.raises(InputError, match=r'images of .*a\.npz is not an array'):
    data.load(str(tmp_path / 'a.npz'))


def test_members_of_an_archive_are_not_extracted(tmp_path):
  path = tmp_path / 'in' / 'a.npz'
  path.parent.mkdir()
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('images.npy', '../../out.npy', '/tmp/out.npy'):
      with archive.open(name, 'w') as file:
        np.save(file, random_images(6, 4, 4))
  with pytest.raises(InputError, match=r"holds the keys \['\.\./\.\./out"):
    data.load(str(path))
  assert list(tmp_path.rglob('*')) == [path.parent, path]


def test_what_unpacks_to_more_than_half_of_the_memory_is_not_read(
  tmp_path, monkeypatch
):
  images = np.zeros((100, 64, 64), np.uint8)
  np.savez_compressed(tmp_path / 'a.npz', images=images)
  assert (tmp_path / 'a.npz').stat().st_size < images.nbytes / 100
  np.save(tmp_path / 'a.npy', images)
  for row in range(4):
    save(tmp_path / 'images' / f'{row}.png', images[0])
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


def test_both_splits_are_resized(tmp_path):
  images, test_images = random_images(6, 4, 4), random_images(3, 5, 7)
  arrays = {'images': images, 'test_images': test_images}
  path = savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(InputError, match=r'one size with --config.data.size='):
    data.load(path)
  dataset = data.load(path, size=(4, 4))
  np.testing.assert_array_equal(dataset.images[..., 0], images)
  assert dataset.test_images.shape == (3, 4, 4, 1)


@pytest.mark.parametrize('size', [None, (), [], 8, (8,), (8, 8), [8, 8]])
def test_a_size_that_images_have_changes_nothing(size):
  assert_equal(data.load('digits', size=size), data.load('digits'))


def test_height_comes_before_width():
  digits = data.load('digits', size=(3, 5))
  assert digits.images.shape[1:] == (3, 5, 1)
  assert digits.test_images.shape[1:] == (3, 5, 1)


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
def test_an_invalid_size_is_refused(size, message):
  with pytest.raises(InputError, match=message):
    data.load('digits', size=size)


def test_grey_becomes_colour_and_colour_that_is_grey_becomes_grey():
  grey, colour = random_images(4, 6, 5, 1), random_images(2, 6, 5, 3)
  repeated = np.concatenate([grey, grey, grey], axis=3)
  for images in (grey, repeated):
    for channels, expected in ((1, grey), (3, repeated)):
      dataset = data.Dataset('a', images, test_images=images[:2])
      found = data.with_channels(dataset, channels)
      np.testing.assert_array_equal(found.images, expected, strict=True)
      np.testing.assert_array_equal(found.test_images, expected[:2])
  found = data.with_channels(data.Dataset('a', colour), 3)
  assert found.images is colour
  assert found.test_images is None


@pytest.mark.parametrize(('found', 'wanted'), [(3, 1), (4, 3), (1, 2), (3, 4)])
def test_channels_that_cannot_be_had_are_refused(found, wanted):
  dataset = data.Dataset('a', random_images(2, 6, 5, 1).repeat(found, axis=3))
  dataset.images[1, 2, 3, found - 1] ^= 1
  told = f'images have {found} channels, and {wanted} are needed'
  with pytest.raises(InputError, match=told):
    data.with_channels(dataset, wanted)

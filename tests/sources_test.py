"""Image sets from files and folders, and errors if they are unusable."""

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_sets import (
  assert_equal,
  empty,
  isolate,
  not_finite,
  random_images,
  save,
  savez,
  truncate,
)
from PIL import Image

from jaxclust import data
from jaxclust.errors import InputError


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


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, monkeypatch):
  isolate(monkeypatch, tmp_path)
  for name in ('fashion-mnist', 'fasion_mnist'):
    with pytest.raises(InputError, match="nearest is 'fashion_mnist'"):
      data.load(name)
  with pytest.raises(InputError, match=f'digits.*{tmp_path}.*folder of images'):
    data.load('')
  assert not list(tmp_path.iterdir())


def test_an_npz_is_loaded_as_it_was_saved(tmp_path):
  arrays = {
    'images': random_images(6, 27, 31, 3),
    'labels': np.array([3, -1, 3, 9, 0, 0]),
    'test_images': random_images(2, 27, 31, 3),
    'test_labels': np.array([3, 9]),
  }
  path = savez(tmp_path / 'a.npz', **arrays)
  assert_equal(data.load(path), data.Dataset(path, **arrays))
  other = tmp_path / 'no_suffix'
  shutil.copy(path, other)
  np.testing.assert_array_equal(data.load(str(other)).images, arrays['images'])


@pytest.mark.parametrize('shape', [(6, 4, 5), (6, 4, 5, 3)])
def test_an_npy_holds_images_alone(tmp_path, shape):
  images = np.asfortranarray(random_images(*shape))
  np.save(tmp_path / 'a.npy', images)
  dataset = data.load(str(tmp_path / 'a.npy'))
  np.testing.assert_array_equal(
    dataset.images, images.reshape(*shape[:3], -1), strict=True
  )
  assert not isinstance(dataset.images, np.memmap)
  assert dataset.labels is dataset.test_images is None
  assert dataset.files == ()


def _archive(path):
  with open(path, 'wb') as file:
    np.savez(file, images=random_images(6, 4, 4))


def _objects(path):
  np.save(path, np.array([[[object()]]]), allow_pickle=True)


def _deep_colours(path):
  """Writes a PNG of 16 bits for each of three channels."""
  header = struct.pack('>IIBBBBB', 5, 6, 16, 2, 0, 0, 0)
  pixels = zlib.compress(6 * (b'\0' + bytes(5 * 6)))
  _png(path, (b'IHDR', header), (b'IDAT', pixels), (b'IEND', b''))


def _moving(path):
  frames = [Image.fromarray(image) for image in random_images(2, 6, 5)]
  frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (truncate, 'cannot be read as .npy'),
    (empty, 'cannot be read as .npy'),
    (_archive, 'cannot be read as .npy'),
    (_objects, 'cannot be read as .npy .*object'),
    (Path.unlink, 'does not exist'),
    (lambda path: np.save(path, random_images(0, 4, 4)), 'an empty split'),
    (lambda path: np.save(path, np.arange(6)), r'\(6,\): expected \[N, H, W\]'),
    (lambda path: np.save(path, not_finite(np.nan)), '2 values .* not finite'),
  ],
)
def test_an_npy_that_cannot_be_used_says_why(tmp_path, damage, message):
  path = tmp_path / 'a.npy'
  np.save(path, random_images(60, 8, 8))
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


def _npz(path, shape, num_bytes=0):
  """Writes an .npz that states a shape, and its length if any, without data."""
  header = io.BytesIO()
  described = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(header, described)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('images.npy', header.getvalue())
    if num_bytes:
      archive.getinfo('images.npy').file_size = num_bytes


def _png_bomb(path, width, height):
  """Writes a PNG whose header states a size, without any data."""
  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  path.parent.mkdir(exist_ok=True)
  _png(path, (b'IHDR', header), (b'IDAT', b''))


def _png(path, *chunks):
  content = b'\x89PNG\r\n\x1a\n'
  for kind, body in chunks:
    checksum = zlib.crc32(kind + body)
    content += struct.pack('>I', len(body)) + kind + body
    content += struct.pack('>I', checksum)
  path.write_bytes(content)


@pytest.mark.slow
def test_bombs_and_absurd_headers_end_in_an_error_within_8_gib(tmp_path):
  _npz(tmp_path / 'long.npz', (2**62, 1, 1))
  _npz(tmp_path / 'large.npz', (2**36, 28, 28))
  _npz(tmp_path / 'negative.npz', (-5, 28, 28))
  _npz(tmp_path / 'bomb.npz', (4112, 1024, 1024), 2**32 + 2**24)
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


def test_the_sub_folders_of_a_folder_are_its_labels(tmp_path):
  images = random_images(4, 6, 5)
  for name, image in zip(
    ['dog/2.png', 'cat/z.PNG', 'dog/1.png', 'ant/x/1.png'], images, strict=True
  ):
    save(tmp_path / name, image)
  for name in ('dog/.3.png', '.git/4.png'):
    save(tmp_path / name, images[0])
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
  for row, image in enumerate(random_images(3, 6, 5)):
    save(tmp_path / f'{row}.jpg', image)
  dataset = data.load(str(tmp_path))
  assert dataset.images.shape == (3, 6, 5, 1)
  assert dataset.labels is None
  assert dataset.label_names == ()
  assert dataset.files == ('0.jpg', '1.jpg', '2.jpg')


def test_colours_are_kept(tmp_path):
  images = random_images(2, 6, 5, 3)
  for row, image in enumerate(images):
    save(tmp_path / f'{row}.png', image)
  np.testing.assert_array_equal(data.load(str(tmp_path)).images, images)


def test_transparent_pixels_lie_on_white_in_all_files_alike(tmp_path):
  image = random_images(6, 5, 4)
  image[..., 3] = np.resize([0, 255], (6, 5))
  expected = np.where(image[..., 3:] == 0, 255, image[..., :3])
  for others in ([], [random_images(6, 5)]):
    for row, each in enumerate([image, *others]):
      save(tmp_path / f'{row}.png', each)
    found = data.load(str(tmp_path)).images
    np.testing.assert_array_equal(found[0], expected)
  grey = np.dstack([random_images(6, 5), image[..., 3]])
  save(tmp_path / 'grey' / '0.png', grey)
  found = data.load(str(tmp_path / 'grey')).images[0, ..., 0]
  expected = np.where(grey[..., 1] == 0, 255, grey[..., 0])
  np.testing.assert_array_equal(found, expected)


def test_mixed_modes_become_rgb(tmp_path):
  grey, colour = random_images(6, 5), random_images(6, 5, 3)
  save(tmp_path / 'a.png', grey)
  save(tmp_path / 'b.png', colour)
  expected = np.stack([np.repeat(grey[..., None], 3, axis=2), colour])
  np.testing.assert_array_equal(data.load(str(tmp_path)).images, expected)


# EXIF whose orientation is a word.
WORD = b'Exif\0\0' + struct.pack(
  '<2sHIHHHI4sI', b'II', 42, 8, 1, 274, 2, 4, b'abc\0', 0
)


@pytest.mark.parametrize(
  ('orientation', 'turn'),
  [
    (1, lambda image: image),
    (3, lambda image: image[::-1, ::-1]),
    (6, lambda image: np.rot90(image, -1)),
    (8, lambda image: np.rot90(image, 1)),
    *((value, lambda image: image) for value in (0, 9, 255, 65535, WORD)),
  ],
)
def test_an_image_is_turned_as_its_camera_says(tmp_path, orientation, turn):
  image = random_images(6, 5)
  exif = orientation
  if isinstance(orientation, int):
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
  """Writes PostScript, for which Pillow runs another program."""
  path.write_text(
    '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\nshowpage\n'
  )


def _resize(path):
  save(path, random_images(5, 6))


def _sixteen_bits(path):
  save(path, random_images(6, 5).astype(np.uint16))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_cut, r'0\.png cannot be read as a picture'),
    (_no_image, r'0\.png cannot be read as a picture'),
    (_program, r'0\.png cannot be read as a picture'),
    (
      _resize,
      r'0\.png has 5x6 pixels .* 1 of 4 .* 6x5: .*--config.data.size=\(6, 5\)$',
    ),
    (_sixteen_bits, r'0\.png has mode I;16, more than 8 bits'),
    (_deep_colours, r'0\.png has mode RGB, more than 8 bits'),
    (_moving, r'0\.png has several frames'),
  ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path, damage, message):
  for row, image in enumerate(random_images(4, 6, 5)):
    save(tmp_path / f'{row}.png', image)
  before = data.load(str(tmp_path))
  damage(tmp_path / '0.png')
  with pytest.raises(InputError, match=message):
    data.load(str(tmp_path))
  found = data.load(str(tmp_path), skip_bad=True)
  np.testing.assert_array_equal(found.images, before.images[1:])
  assert found.files == before.files[1:]
  ((file, why),) = found.left_out
  assert re.search(message.removeprefix(r'0\.png ')[:14], why)
  assert file == '0.png'


def test_all_bad_images_are_named_at_once(tmp_path):
  for row, image in enumerate(random_images(14, 6, 5)):
    save(tmp_path / f'{row:02}.png', image)
  for row in range(12):
    _cut(tmp_path / f'{row:02}.png')
  with pytest.raises(
    InputError, match=r'00\.png .*; .*09\.png .* and 2 more: '
  ):
    data.load(str(tmp_path))
  assert len(data.load(str(tmp_path), skip_bad=True).images) == 2
  for row in (12, 13):
    _cut(tmp_path / f'{row:02}.png')
  with pytest.raises(InputError, match='and 4 more'):
    data.load(str(tmp_path), skip_bad=True)


@pytest.mark.parametrize(
  'name', ['a.webp', 'a.BMP', 'a.tif', 'a.tiff', 'a.gif', 'a.jfif', 'a.ppm']
)
def test_still_pictures_of_any_format_are_read(tmp_path, name):
  image = np.full((6, 5, 3), (250, 20, 90), np.uint8)
  save(tmp_path / name, image)
  found = data.load(str(tmp_path))
  assert found.files == (name,)
  assert np.abs(found.images[0].astype(int) - image).max() <= 4


def test_files_that_are_left_out_are_told_with_a_reason(tmp_path):
  for name in ('a/0.png', 'b/0.png'):
    save(tmp_path / name, random_images(6, 5))
  (tmp_path / 'b' / 'notes.txt').write_text('no image')
  (tmp_path / 'b' / '1.png').symlink_to('nowhere.png')
  (tmp_path / 'b' / 'again').symlink_to(tmp_path)
  (tmp_path / 'c').symlink_to(tmp_path / 'a')
  found = data.load(str(tmp_path))
  assert found.files == ('a/0.png', 'b/0.png')
  assert dict(found.left_out) == {
    'b/notes.txt': 'is no picture by its ending',
    'b/1.png': 'is a link to nothing',
    'b/again': 'is a folder read elsewhere',
    'c': 'is a folder read elsewhere',
  }


def test_a_link_to_a_hidden_folder_is_followed(tmp_path):
  for name in ('.cache/cats/0.png', 'dogs/0.png'):
    save(tmp_path / name, random_images(6, 5))
  (tmp_path / 'cats').symlink_to(tmp_path / '.cache' / 'cats')
  assert data.load(str(tmp_path)).files == ('cats/0.png', 'dogs/0.png')


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path):
  save(tmp_path / 'far' / '0.png', random_images(6, 5))
  for name in ('a', 'b'):
    (tmp_path / 'near').mkdir(exist_ok=True)
    (tmp_path / 'near' / name).symlink_to(tmp_path / 'far')
  found = data.load(str(tmp_path / 'near'))
  assert found.files == ('a/0.png',)
  assert found.left_out == (('b', 'is a folder read elsewhere'),)


def test_a_folder_within_two_links_is_read_once(tmp_path):
  for name in ('far/0.png', 'far/part/1.png'):
    save(tmp_path / name, random_images(6, 5))
  (tmp_path / 'near').mkdir()
  (tmp_path / 'near' / 'a').symlink_to(tmp_path / 'far' / 'part')
  (tmp_path / 'near' / 'b').symlink_to(tmp_path / 'far')
  found = data.load(str(tmp_path / 'near'))
  assert found.files == ('a/1.png', 'b/0.png')
  assert found.left_out == (('b/part', 'is a folder read elsewhere'),)


@pytest.mark.skipif(os.getuid() == 0, reason='the superuser reads anything')
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
  save(tmp_path / 'a' / '0.png', random_images(6, 5))
  (tmp_path / 'b').mkdir(mode=0)
  found = data.load(str(tmp_path))
  assert found.left_out == (('b', 'cannot be read (Permission denied)'),)


@pytest.mark.parametrize('labelled', [False, True])
def test_folders_train_and_test_are_the_splits(tmp_path, labelled):
  images = random_images(5, 6, 5)
  names = ['test/a/0.png', 'train/a/0.png', 'train/b/0.png', 'train/b/1.png']
  names.append('test/b/0.png')
  if not labelled:
    names = [name.replace('a/', 'a').replace('b/', 'b') for name in names]
  for name, image in zip(names, images, strict=True):
    save(tmp_path / name, image)
  found = data.load(str(tmp_path))
  np.testing.assert_array_equal(found.images[..., 0], images[1:4])
  np.testing.assert_array_equal(found.test_images[..., 0], images[[0, 4]])
  assert found.files == (*names[1:4], names[0], names[4])
  if labelled:
    np.testing.assert_array_equal(found.labels, [0, 1, 1])
    np.testing.assert_array_equal(found.test_labels, [0, 1])
    assert found.label_names == ('a', 'b')
  else:
    assert found.labels is found.test_labels is None


def test_one_picture_is_no_set(tmp_path):
  save(tmp_path / 'a.png', random_images(6, 5))
  with pytest.raises(InputError, match=r'neither .* the folder of pic'):
    data.load(str(tmp_path / 'a.png'))


def test_a_folder_that_has_the_name_of_a_set_is_told(tmp_path, monkeypatch):
  save(tmp_path / 'digits' / 'a.png', random_images(6, 5))
  monkeypatch.chdir(tmp_path)
  with pytest.warns(UserWarning, match=r'the folder here is \./digits'):
    assert len(data.load('digits').images) == 1348
  assert len(data.load('./digits').images) == 1


def test_an_image_beside_the_labels_is_named(tmp_path):
  save(tmp_path / 'a' / '0.png', random_images(6, 5))
  save(tmp_path / 'b.png', random_images(6, 5))
  with pytest.raises(InputError, match=r'b\.png lies beside the sub-folders'):
    data.load(str(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'holds no \.png'):
    data.load(str(tmp_path))


def test_large_photos_of_many_sizes_get_a_size_for_networks(tmp_path):
  for row, size in enumerate([(300, 400), (300, 400), (200, 400), (10, 400)]):
    save(tmp_path / f'{row}.png', random_images(*size))
  told = r'2 of 4 .* 300x400: .*--config.data.size=\(72, 96\)$'
  with pytest.raises(InputError, match=told):
    data.load(str(tmp_path))


def test_images_of_a_folder_are_resized_each(tmp_path):
  images = [random_images(6, 5, 3), random_images(4, 4, 3), random_images(9, 2)]
  for name, image in zip('abc', images, strict=True):
    save(tmp_path / f'{name}.png', image)
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


@pytest.mark.parametrize('name', ['photos/', './photos', '/none/photos'])
def test_a_path_that_is_not_there_is_no_unknown_set(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match='there is no file and no folder'):
    data.load(name)

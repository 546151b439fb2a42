"""Sheets and galleries of images hold each image where it belongs."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxclust.report import figures, fonts, pictures


def test_images_are_laid_out_in_rows():
  images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
  np.testing.assert_array_equal(
    pictures.sheet(images, 2)[..., 0], [[0, 1], [2, 128]]
  )
  np.testing.assert_array_equal(
    pictures.sheet(images[1:], 2, gap=1)[..., 0],
    [[1, 128, 2, 128], [128, 128, 128, 128]],
  )
  np.testing.assert_array_equal(
    pictures.as_bytes(np.array([-1.0, 0.2, 1.0, 7.0])), [0, 51, 255, 255]
  )


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_a_gallery_shows_each_image_in_its_line(
  channels, dtype, tmp_path, monkeypatch
):
  drawn = []
  show = figures.Figure.add_subplot

  def add_subplot(figure):
    axes = show(figure)
    monkeypatch.setattr(axes, 'imshow', lambda image, **_: drawn.append(image))
    return axes

  monkeypatch.setattr(figures.Figure, 'add_subplot', add_subplot)
  images = np.arange(3).repeat(2 * channels).reshape(3, 1, 2, channels) / 255
  images = (255 * images).astype(dtype) if dtype == np.uint8 else images
  rows = [np.array([1, 0]), np.array([], int), np.array([2])]
  path = tmp_path / 'figures' / 'gallery.png'
  figures.gallery(path, images, rows, ['first', 'second', 'third'])
  assert path.stat().st_size > 1000
  (image,) = drawn
  assert image.ndim == (3 if channels in (3, 4) else 2)
  image = image.reshape(*image.shape[:2], -1)[::2, :, 0]
  np.testing.assert_array_equal(
    image, [[1, 1, 128, 0, 0, 128], [128] * 6, [2, 2, *[128] * 4]]
  )


def test_a_gallery_of_many_clusters_is_still_a_picture(tmp_path):
  rows = [np.array([0])] * 1000
  images = np.zeros((1, 2, 2, 1), np.uint8)
  figures.gallery(tmp_path / 'a.png', images, rows, [''] * 1000)
  with Image.open(tmp_path / 'a.png') as picture:
    assert picture.height < 2**15


@pytest.mark.parametrize(
  ('channels', 'mode'), [(1, 'L'), (2, 'L'), (3, 'RGB'), (4, 'RGBA'), (5, 'L')]
)
def test_an_image_of_any_channels_is_written(channels, mode, tmp_path):
  pictures.save_image(
    tmp_path / 'a' / 'b.png', np.zeros((4, 5, channels), np.uint8)
  )
  with Image.open(tmp_path / 'a' / 'b.png') as image:
    assert (image.mode, image.size) == (mode, (5, 4))


def test_a_chart_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch):
  def save(figure, path):
    raise MemoryError('Unable to allocate 9 GiB')

  monkeypatch.setattr(figures, '_save', save)
  told = r'a\.png cannot be drawn \(MemoryError: Unable .* are complete'
  with pytest.warns(UserWarning, match=told):
    assert figures.purities(tmp_path / 'a.png', {'train': [1.0]}) is None


def test_a_disk_that_takes_no_more_is_an_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match='file'):
    figures.purities(tmp_path / 'file' / 'a.png', {'train': [1.0]})


@pytest.mark.parametrize(
  'name', ['$x_{$', 'a$b', '_hidden', 'caf\udce9', 'x', r'\frac{']
)
def test_any_name_of_a_class_is_drawn(tmp_path, name, monkeypatch):
  """Mathematics, a legend's sign for nothing, bytes that are no text."""
  monkeypatch.setitem(matplotlib.rcParams, 'text.usetex', True)
  shown = []
  save = figures._save

  def record(figure, path):
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    shown.append(legend)
    return save(figure, path)

  monkeypatch.setattr(figures, '_save', record)
  points, groups = np.eye(4)[:, :2], np.array([0, 0, 1, 1])
  path = tmp_path / 'a.png'
  assert figures.scatter(path, points, groups, [name, 'other']) == path
  assert [len(legend) for legend in shown] == [2]
  monkeypatch.undo()
  assert figures.confusion(path, groups, groups, 2, [name, 'other']) == path


def test_letters_come_from_fonts_that_have_them(monkeypatch):
  """The private use area is in no font but an invented one."""
  own = {'\ue0f1': 'First', '\ue0f2': 'Second'}
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    before = matplotlib.rcParams['font.family']
    assert fonts.readable(['Zürich', 'a']) == ['Zürich', 'a']
    assert matplotlib.rcParams['font.family'] == before
    others = [(family, {letter}) for letter, family in own.items()]
    monkeypatch.setattr(fonts, '_others', lambda: iter(others))
    names = ['x\ue0f2', '\ue0f3$\ue0f4']
    assert fonts.readable(names) == ['x\ue0f2', r'\ue0f3\$\ue0f4']
    assert matplotlib.rcParams['font.family'] == [*before, 'Second']


def test_every_font_of_this_machine_is_read_or_left_out():
  found = dict(fonts._others())
  assert 'a' in found['DejaVu Sans']
  assert not any('\ue0f1' in letters for letters in found.values())
  assert fonts._letters(__file__) == frozenset()


def test_a_table_of_many_classes_is_still_a_picture(tmp_path):
  classes = np.arange(1000)
  names = list(map(str, classes))
  figures.confusion(tmp_path / 'a.png', classes, classes, 1000, names)
  figures.scatter(tmp_path / 'b.png', np.ones((1000, 2)), classes, names)
  for name in ('a.png', 'b.png'):
    with Image.open(tmp_path / name) as picture:
      assert max(picture.size) < 2**13

"""The data of the map on the page."""

import base64
import gzip

import numpy as np
import pytest
from PIL import Image

from jaxclust.report import explorer


def test_each_image_is_found_on_the_sheet(tmp_path):
  images = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(7, 4, 3, 1)
  labels = np.array([0, 1, 1, 0, 2, 1, 0])
  data = explorer.build(
    *(tmp_path / 'sheet.webp', images, {'pca': np.eye(7)[:, :2]}),
    {'cluster': labels},
    {'cluster': ['0', '1', '2']},
    {'confidence': np.ones(7)},
    tuple('abcdefg'),
  )
  assert (data['width'], data['height'], data['columns']) == (3, 4, 3)
  assert data['files'] == list('abcdefg')
  sheet = np.asarray(Image.open(tmp_path / 'sheet.webp'))[..., 0]
  left, top = (column(data, name) // data['zoom'] for name in ('left', 'top'))
  for image, x, y in zip(images, left, top, strict=True):
    np.testing.assert_array_equal(sheet[y : y + 4, x : x + 3], image[..., 0])
  np.testing.assert_array_equal(column(data, 'pca_x'), np.eye(7)[:, 0])
  np.testing.assert_array_equal(column(data, 'group'), labels)


def column(data, name):
  """A column of the plot's source, as Bokeh has written it."""
  (source,) = _sources(data['item'])
  columns = dict(source['data']['entries'])
  found = columns[name]
  content = gzip.decompress(base64.b64decode(found['array']['data']))
  return np.frombuffer(content, found['dtype'])


def _sources(item):
  """All sources in a tree of JSON."""
  if isinstance(item, dict):
    if item.get('name') == 'ColumnDataSource':
      yield item['attributes']
    for value in item.values():
      yield from _sources(value)
  elif isinstance(item, list):
    for value in item:
      yield from _sources(value)


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ([3, 4], [3, 4]),
    ([100, 3, 4], [3, 3, 3]),
    ([100, 100, 1], [4, 4, 1]),
    ([0, 100, 5], [0, 5, 5]),
    ([12], [10]),
  ],
)
def test_small_clusters_keep_their_pictures(sizes, expected):
  labels = np.repeat(np.arange(len(sizes)), sizes)
  kept = explorer._spread(labels, 10)
  assert (np.diff(kept) > 0).all()
  counts = np.bincount(labels[kept], minlength=len(sizes))
  np.testing.assert_array_equal(counts, expected)


def test_a_large_set_is_thinned_evenly(monkeypatch, tmp_path):
  monkeypatch.setattr(explorer, '_POINTS', 50)
  monkeypatch.setattr(explorer, '_THUMBNAILS', 20)
  monkeypatch.setattr(explorer, '_SMALL_SHEET', 0)
  count, labels = 500, np.arange(500) % 4
  data = explorer.build(
    tmp_path / 'sheet.webp',
    np.zeros((count, 40, 40, 3)),
    {'pca': np.zeros((count, 2))},
    {'cluster': labels, 'class': labels},
    {'cluster': list('0123'), 'class': list('abcd')},
    {'confidence': np.zeros(count)},
  )
  rows = column(data, 'row')
  assert len(rows) == 50
  assert (rows[0], rows[-1]) == (0, 499)
  assert data['files'] == []
  cells = list(zip(column(data, 'left'), column(data, 'top'), strict=True))
  assert len(set(cells)) == 21
  last = 20 * data['zoom'] * np.array([20 % 5, 20 // 5])  # the empty one
  assert cells.count(tuple(last)) == 30
  assert (data['width'], data['height']) == (20, 20)


def test_more_are_shown_where_they_take_little_room(monkeypatch, tmp_path):
  monkeypatch.setattr(explorer, '_THUMBNAILS', 20)
  for most, expected in ((30, 28), (1000, 60)):
    monkeypatch.setattr(explorer, '_MOST_THUMBNAILS', most)
    data = explorer.build(
      tmp_path / 'sheet.webp',
      np.zeros((60, 4, 3, 1)),
      {'pca': np.zeros((60, 2))},
      {'cluster': np.arange(60) % 4},
      {'cluster': list('0123')},
      {'confidence': np.zeros(60)},
    )
    assert column(data, 'pictured').sum() == expected

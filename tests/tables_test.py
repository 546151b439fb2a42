"""Tables of images and their clusters."""

import types

import numpy as np
import pytest
from pyarrow import parquet
from small_runs import SMALL, draw_npz, run, table

import jaxclust
from jaxclust import tables
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.errors import InputError

FILES = (
  *('a,b.png', 'say "x".png', 'two\nlines.png', 'back\rto.png', 'größe.png'),
  *('=1+1.png', '-a.png', 'caf\udce9.png'),
)
TEXTS = (*FILES[:7], 'caf\\xe9.png')
SAFE = (*FILES[:5], './=1+1.png', './-a.png', 'caf\\xe9.png')
COLUMNS = 'file split cluster name second confidence outlier distance class x y'


def found_in(count):
  values = np.arange(count, dtype=np.float32) / 3
  labels = np.arange(count, dtype=np.int32) % 3
  return Assignment(
    labels, (labels + 1) % 3, values, -values, 2 * values, values
  )


def write(path, judged, dataset, places=None, names=()):
  own = types.SimpleNamespace(
    centers=np.zeros((3, 2)), percentile=lambda scores: 50 - scores
  )
  tables.write(path, dataset, own, judged, places or {}, names)


def test_a_table_keeps_any_name_of_a_file(tmp_path):
  images = np.zeros((len(FILES), 2, 2, 1))
  dataset = Dataset('mine', images, files=FILES)
  write(tmp_path, {'images': found_in(len(FILES))}, dataset)
  (tmp_path / 'clusters.csv').read_bytes().decode()
  assert tuple(row['file'] for row in table(tmp_path)) == SAFE
  assert list(table(tmp_path)[0]) == COLUMNS.split()
  rows = parquet.read_table(tmp_path / 'clusters.parquet').to_pylist()
  assert tuple(row['file'] for row in rows) == TEXTS


def test_both_tables_hold_what_was_found(tmp_path):
  parts = {'train': found_in(4), 'test': found_in(2)}
  images, labels = np.zeros((6, 2, 2, 1)), np.array([1, 0, 0, 1])
  dataset = Dataset(
    *('mine', images[:4], labels),
    test_images=images[4:],
    label_names=('=no', 'yes'),
  )
  places = {
    'pca': {'train': np.ones((4, 2)), 'test': np.ones((2, 2))},
    'tsne': {'train': np.full((4, 2), 5.0), 'test': [[6.0, 7.0]] * 2},
  }
  write(tmp_path, parts, dataset, places, ['x', 'y', 'x'])
  rows = parquet.read_table(tmp_path / 'clusters.parquet').to_pylist()
  expected = {
    'file': ['train/0', 'train/1', 'train/2', 'train/3', 'test/0', 'test/1'],
    'split': ['train'] * 4 + ['test'] * 2,
    'cluster': [0, 1, 2, 0, 0, 1],
    'name': ['x', 'y', 'x', 'x', 'x', 'y'],
    'second': [1, 2, 0, 1, 1, 2],
    'class': ['yes', '=no', '=no', 'yes', None, None],
    'x': [5.0] * 4 + [6.0] * 2,
    'y': [5.0] * 4 + [7.0] * 2,
  }
  for name, values in expected.items():
    assert [row[name] for row in rows] == values
  values = np.array([0, 1, 2, 3, 0, 1], np.float32) / 3
  for name, own in (
    ('confidence', values),
    ('distance', 2 * values),
    ('outlier', 50 + values),
  ):
    np.testing.assert_array_equal([row[name] for row in rows], own)
    found = [float(row[name]) for row in table(tmp_path)]
    np.testing.assert_array_equal(np.float32(found), own)
  classes = [row['class'] for row in table(tmp_path)]
  assert classes == ['yes', './=no', './=no', 'yes', '', '']


def test_a_run_and_its_predictions_have_the_same_table(tmp_path):
  name = draw_npz(tmp_path / 'mine.npz', labels=np.arange(60) % 3)
  assert run('kmeans', tmp_path / 'run', name, *SMALL['kmeans']) == 0
  names = tmp_path / 'names.json'
  names.write_text('{"1": "bags"}')
  flags = [name, f'--config.run={tmp_path}/run', f'--config.names={names}']
  assert run('predict', tmp_path / 'found', *flags) == 0
  ours, theirs = table(tmp_path / 'run'), table(tmp_path / 'found')
  for own, other in zip(ours, theirs, strict=True):
    for column in ('cluster', 'second', 'class', 'outlier', 'confidence'):
      assert own[column] == other[column]
    called = 'bags' if own['cluster'] == '1' else own['cluster']
    assert (own['name'], other['name']) == (own['cluster'], called)
  ranks = np.sort([float(row['outlier']) for row in ours])
  assert 0 < ranks[0] < 1
  assert 99 < ranks[-1] < 100
  np.testing.assert_allclose(np.diff(ranks), 100 / 59, atol=0.2)


def test_a_stranger_is_beyond_all_images_of_the_run(tmp_path):
  name = draw_npz(tmp_path / 'mine.npz')
  assert run('kmeans', tmp_path / 'run', name, *SMALL['kmeans']) == 0
  own = jaxclust.load(tmp_path / 'run')
  strange = np.where(np.indices((6, 7)).sum(axis=0) % 2, 255, 0)[None]
  scores = own.assess(np.uint8(strange)).outlier_score
  np.testing.assert_array_equal(own.percentile(scores), [100])
  np.testing.assert_array_equal(own.percentile(-scores), [0])
  unknown = own._replace(outliers=None).percentile(scores)
  np.testing.assert_array_equal(unknown, [np.nan])


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    ('', 'does not name clusters'),
    ('[]', 'does not name clusters'),
    ('{"0": "\\ud800"}', 'does not name clusters'),
    ('{"3": "a"}', "cluster '3' 'a': clusters are 0 to 2"),
    ('{"0": 1}', "cluster '0' 1: clusters are 0 to 2, and names texts"),
  ],
)
def test_names_that_cannot_be_used_are_told(tmp_path, text, told):
  (tmp_path / 'names.json').write_text(text)
  with pytest.raises(InputError, match=told):
    tables.read_names(tmp_path / 'names.json', 3)
  with pytest.raises(InputError, match='No such file'):
    tables.read_names(tmp_path / 'other.json', 3)


def test_names_need_not_be_of_all_clusters(tmp_path):
  (tmp_path / 'names.json').write_text('{"2": "größe", "0": "x"}')
  assert tables.read_names(tmp_path / 'names.json', 3) == ['x', '1', 'größe']

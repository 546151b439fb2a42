"""Predictions: the clusters that a finished run finds in other images."""

import re
import shutil

import numpy as np
import pytest
from image_sets import random_images, savez
from PIL import Image
from small_runs import (
  SMALL,
  draw_folder,
  draw_npz,
  read,
  run,
  table,
)

import jaxclust
from jaxclust import predictions
from jaxclust.algorithms.assignment import Assignment
from jaxclust.errors import InputError


def test_cosine_k_means_predicts_by_the_cosine(tmp_path):
  name = draw_npz(tmp_path / 'mine.npz')
  flags = [name, '--config.kmeans.metric=cosine', *SMALL['kmeans']]
  assert run('kmeans', tmp_path / 'run', *flags) == 0
  flags = [name, f'--config.run={tmp_path}/run']
  assert run('predict', tmp_path / 'found', *flags) == 0
  with np.load(tmp_path / 'mine.npz') as arrays:
    x = arrays['images'].reshape(60, -1) / 255
  centers = np.asarray(jaxclust.load(tmp_path / 'run').centers, float)
  norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(centers, axis=1)
  away = 1 - x @ centers.T / norms
  first, second = np.sort(away, axis=1)[:, :2].T
  rows = table(tmp_path / 'found')
  columns = {
    key: np.array([float(row[key]) for row in rows])
    for key in ('cluster', 'second', 'confidence', 'outlier', 'distance')
  }
  np.testing.assert_array_equal(columns['cluster'], away.argmin(axis=1))
  np.testing.assert_allclose(columns['distance'], first, atol=1e-5)
  nearest_first = away.argsort(axis=1)
  np.testing.assert_array_equal(columns['second'], nearest_first[:, 1])
  ranks = columns['outlier'][first.argsort()]
  assert (np.diff(ranks) >= 0).all()
  rising = columns['confidence'][(second / first).argsort()]
  assert (np.diff(rising) >= -1e-6).all()
  with np.load(tmp_path / 'run' / 'assignments.npz') as arrays:
    np.testing.assert_array_equal(columns['cluster'], arrays['train_labels'])


def test_a_folder_of_colours_and_sizes_is_clustered_and_predicted(
  tmp_path, capfd
):
  colors, sizes = ('red', 'green', 'blue'), ((6, 5), (9, 9), (4, 7))
  folder = draw_folder(tmp_path / 'old', colors, sizes)
  flags = ['--config.kmeans.num_clusters=3', '--config.kmeans.num_restarts=4']
  flags += [f'--config.data.name={folder}']
  assert run('kmeans', tmp_path / 'run', *flags) == 2
  message = capfd.readouterr().err
  size = re.search(r'(--config.data.size=\(\d, \d\))\n', message)[1]
  assert run('kmeans', tmp_path / 'run', *flags, size) == 0
  assert read(tmp_path / 'run')['train']['ari'] == 1
  shutil.rmtree(folder)  # the data are not needed any more
  folder = draw_folder(tmp_path / 'new', ('blue', 'grey', 'red'), ((12, 8),))
  flags = [f'--config.run={tmp_path}/run', f'--config.data.name={folder}']
  assert run('predict', tmp_path / 'found', *flags) == 0
  rows = table(tmp_path / 'found')
  assert [row['file'] for row in rows[7:9]] == ['blue/7.png', 'grey/0.png']
  clusters = [row['cluster'] for row in rows]
  assert len(set(clusters[:8])) == len(set(clusters[16:])) == 1
  assert clusters[0] != clusters[16]
  strange = np.array([float(row['outlier']) for row in rows])
  assert strange[8:16].min() > np.delete(strange, range(8, 16)).max()
  scores = read(tmp_path / 'found')['images']
  assert 0.5 < scores['purity'] < 1
  assert 'train' not in read(tmp_path / 'found')


def test_a_flat_folder_of_grey_needs_a_run_of_its_channels(
  finished, tmp_path, capfd
):
  folder = draw_folder(tmp_path / 'a', ('red',), ((8, 8),)) / 'red'
  flags = [f'--config.run={finished("kmeans").path}']
  flags += [f'--config.data.name={folder}']
  assert run('predict', tmp_path / 'found', *flags) == 2
  message = capfd.readouterr().err
  assert 'images have 3 channels, and 1 are needed: convert them' in message
  assert run('predict', tmp_path / 'found', *flags, '--config.data.size=5') == 2
  message = capfd.readouterr().err
  assert 'takes images of (8, 8): leave it out' in message
  assert not (tmp_path / 'found').exists()
  for file in folder.iterdir():
    Image.open(file).convert('L').convert('RGB').save(file)
  assert run('predict', tmp_path / 'found', *flags) == 0
  assert not {'images', 'train'} & read(tmp_path / 'found').keys()
  assert len(table(tmp_path / 'found')) == 8


def test_pictures_of_another_kind_than_those_learned_are_refused(
  tmp_path, capsys
):
  """A run on floats from 0 to 255, and bytes, which stand for 0 to 1."""
  pictures = random_images(40, 6, 5)
  floats = savez(tmp_path / 'a.npz', images=np.float32(pictures))
  flags = ['--config.kmeans.num_clusters=3', f'--config.data.name={floats}']
  assert run('kmeans', tmp_path / 'run', *flags) == 0
  own = jaxclust.load(tmp_path / 'run')
  assert own.predict(np.float32(pictures)).shape == (40,)
  told = 'from 0 to 1 .* those of the run from 0 to 255: rescale them'
  for other in (pictures, pictures / 255, np.float32(pictures) * 9):
    with pytest.raises(InputError, match='rescale them, as the run had them'):
      own.predict(other)
  with pytest.raises(InputError, match=r'shape \(40, 1, 6, 5\), with channels'):
    own.predict(pictures[:, None])
  savez(tmp_path / 'b.npz', images=pictures)
  flags = [f'--config.run={tmp_path / "run"}']
  flags += [f'--config.data.name={tmp_path / "b.npz"}']
  capsys.readouterr()
  assert run('predict', tmp_path / 'predicted', *flags) == 2
  assert re.search(told, capsys.readouterr().err)
  assert not (tmp_path / 'predicted').exists()


def test_the_typical_members_of_a_cluster_are_its_least_strange():
  labels = np.array([1, 0, 1, 1, 0])
  scores = np.array([3.0, 1.0, -2.0, 3.0, 0.5])
  found = Assignment(labels, labels, None, scores, None, None)
  rows, titles = predictions.typical(found, 3, 2)
  assert [row.tolist() for row in rows] == [[4, 1], [2, 0], []]
  assert titles == ['0 (2)', '1 (3)', '2 (0)']

"""Two processes of two devices each, which share rows, against one device."""

import pathlib
import sys

import jax
import numpy as np
import one_process
import pytest
import together
from point_sets import blobs

from jaxclust import kmeans


@pytest.fixture(scope='module')
def points():
  x, _ = blobs(num_points=40_000, num_features=32, spread=4.0)
  weight = np.random.default_rng(0).integers(0, 3, len(x)).astype(np.float32)
  return x, weight


@pytest.fixture(scope='module')
def found(points, tmp_path_factory):
  """What each process has found."""
  folder = tmp_path_factory.mktemp('shared')
  np.savez(folder / 'points.npz', x=points[0], weight=points[1])
  port, script = together.free_port(), pathlib.Path(one_process.__file__)
  commands = [
    [sys.executable, script, str(number), '2', str(port), folder]
    for number in range(2)
  ]
  statuses, said = together.wait(together.start(commands, [None, None]))
  assert statuses == [0, 0], said
  return [dict(np.load(folder / f'{number}.npz')) for number in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize('name', one_process.FITS)
def test_processes_find_what_one_device_finds(name, points, found):
  result = one_process.FITS[name](jax.random.key(0), *points)
  for place, array in one_process.arrays_of(name, result).items():
    for own in found:
      np.testing.assert_allclose(own[place], array, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_labels_of_all_rows_can_be_fetched(points, found):
  for own in found:
    labels = kmeans.predict(own['k-means centers'], points[0])
    np.testing.assert_array_equal(own['labels'], labels)
  both = np.concatenate([own['own labels'] for own in found])
  np.testing.assert_array_equal(both, labels)


@pytest.mark.slow
def test_a_nan_in_a_share_is_an_error_of_all(found):
  for own in found:
    assert '1 values that are NaN' in str(own['error'])
    assert '(nan) at row 39999, column 0' in str(own['error'])

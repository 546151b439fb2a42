"""k-means on rows that devices share or the host streams: the same results,
and no copy of all rows anywhere."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from point_sets import blobs, sharded, two_devices

from jaxclust import inputs, kmeans, rows
from jaxclust.algorithms import seeding, solver
from jaxclust.algorithms.lloyd import LLOYD, pad
from jaxclust.algorithms.pruning import PRUNED
from jaxclust.errors import InputError

KEY = jax.random.key(0)
X, _ = blobs(num_points=384, spread=4.0)
WEIGHT = np.random.default_rng(0).integers(0, 3, len(X)).astype(np.float32)

AXES = [AxisType.Auto, AxisType.Explicit]


def assert_close(one, other):
  np.testing.assert_allclose(one.inertias, other.inertias, rtol=1e-4)
  np.testing.assert_allclose(one.centers, other.centers, atol=1e-3)
  np.testing.assert_allclose(one.counts, other.counts)
  np.testing.assert_array_equal(one.num_steps, other.num_steps)


# Rows of two devices


@pytest.mark.parametrize('axes', AXES)
@pytest.mark.parametrize('init', seeding.SEEDINGS)
def test_a_fit_on_two_devices_is_that_on_one(init, axes):
  options = {
    'num_clusters': 4, 'num_restarts': 2, 'init': init, 'sample_weight': WEIGHT
  }  # fmt: skip
  x = sharded(X, two_devices(axes))
  assert_close(kmeans.fit(KEY, x, **options), kmeans.fit(KEY, X, **options))


@pytest.mark.parametrize('axes', AXES)
def test_a_fit_on_batches_of_two_devices_is_that_on_one(axes):
  options = {
    'num_clusters': 4, 'num_restarts': 1, 'sample_weight': WEIGHT,
    'batch_size': 32, 'num_batches': 5,
  }  # fmt: skip
  x = sharded(X, two_devices(axes))
  assert_close(
    kmeans.fit_minibatch(KEY, x, **options),
    kmeans.fit_minibatch(KEY, X, **options),
  )


@pytest.mark.parametrize('axes', AXES)
@pytest.mark.parametrize('metric', inputs.METRICS)
def test_what_is_said_of_points_lies_where_they_lie(metric, axes):
  mesh = two_devices(axes)
  x = sharded(X, mesh)
  for function in (kmeans.predict, kmeans.transform):
    found = function(X[:4], x, metric=metric)
    assert found.sharding == NamedSharding(mesh, PartitionSpec('rows'))
    alone = function(X[:4], X, metric=metric)
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    kmeans.score(X[:4], x, WEIGHT, metric=metric),
    kmeans.score(X[:4], X, WEIGHT, metric=metric),
    rtol=1e-5,
  )


def test_explicit_axes_may_be_set_around_the_calls():
  mesh = two_devices(AxisType.Explicit)
  x = sharded(X, mesh)
  options = {'num_clusters': 4, 'num_restarts': 2, 'init': 'random'}
  alone = kmeans.fit(KEY, X, **options)
  with jax.set_mesh(mesh):
    assert_close(kmeans.fit(KEY, x, **options), alone)
    assert_close(kmeans.fit(KEY, X, **options), alone)
    state = kmeans.start(KEY, x, **options)
    state, _ = kmeans.run(state, x)
    assert_close(kmeans.best(state), alone)
    labels = kmeans.predict(alone.centers, x)
  np.testing.assert_array_equal(labels, kmeans.predict(alone.centers, X))


def test_steps_and_batches_of_two_devices_are_those_of_one():
  x = sharded(X)
  options = {'num_clusters': 4, 'num_restarts': 2, 'init': 'random'}
  one, two = (kmeans.start(KEY, points, **options) for points in (X, x))
  one, _ = kmeans.run(one, X, 3)
  two, _ = kmeans.run(two, x, 3)
  assert_close(kmeans.best(two), kmeans.best(one))
  one, two = kmeans.update(one, X), kmeans.update(two, x)
  assert_close(kmeans.best(two), kmeans.best(one))


def test_points_sharded_by_features_are_shared_by_rows():
  x = X[:, :4]
  placed = inputs.place(sharded(x, None, None, 'rows'), WEIGHT)
  expected = inputs.place(sharded(x), WEIGHT)
  chex.assert_trees_all_equal(placed, expected)  # and the same program's
  for found, wanted in (
    (placed.x, expected.x),
    (placed.weight, expected.weight),
  ):
    assert found.sharding == wanted.sharding


# What devices say to each other

# An instruction of a compiled program that exchanges numbers, and its shape.
_EXCHANGE = re.compile(
  r'= (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce)'
  r'(?:-start)?\('
)


def largest_exchange(fn, *args):
  """Numbers of the largest array that devices exchange in a program."""
  text = jax.jit(fn).lower(*args).compile().as_text()
  shapes = [
    shape
    for instruction in _EXCHANGE.findall(text)
    for shape in re.findall(r'\[([\d,]*)\]', instruction)
  ]
  assert shapes, 'devices say nothing to each other'
  return max(int(np.prod([int(n) for n in s.split(',') if n])) for s in shapes)


def shared_rows(**options):
  placed = inputs.place(sharded(X), WEIGHT, **options)
  return inputs.describe(placed)


def test_a_gather_of_the_rows_would_be_seen():
  placed = shared_rows()

  def sort_by_first(placed):
    return placed.x[jnp.argsort(placed.x[:, 0])]

  assert largest_exchange(sort_by_first, placed) >= X.size // 2


@pytest.mark.parametrize('algorithm', [LLOYD, PRUNED])
def test_steps_exchange_sums_and_no_rows(algorithm):
  placed = shared_rows(block_size=70)
  state = solver.begin(LLOYD, pad(X[None, :4], 4, 4), placed)
  state = state._replace(frame=())

  def many_steps(state, placed):
    return solver._iterate(algorithm, state, placed, 0.0, 0.0, 9, 9)

  # Centers to be relocated come with the K farthest rows of each device.
  assert largest_exchange(many_steps, state, placed) <= 2 * 4 * X.shape[1]


@pytest.mark.parametrize('init', seeding.SEEDINGS)
def test_seeding_exchanges_candidates_and_no_rows(init):
  runs_of = np.arange(1, dtype=np.int32)

  def seed(key, placed):
    return seeding._seed(init, 4, key, placed, 4, runs_of)

  # A round of k-means|| draws 2 K rows of each device.
  assert largest_exchange(seed, KEY, shared_rows()) <= 2 * 8 * X.shape[1]


def test_finding_a_frame_exchanges_sums_and_no_rows():
  placed = inputs.place(sharded(X))
  largest = largest_exchange(
    lambda placed: inputs.describe(placed).frame, placed
  )
  assert largest <= 2 * X.shape[1]


# Rows that the host streams


@pytest.fixture
def mapped(tmp_path, monkeypatch):
  """The points as a memory-mapped file that counts as large."""
  monkeypatch.setattr(inputs, '_MAPPED_BYTES', X.nbytes // 2)
  monkeypatch.setattr(rows, '_STREAM_BYTES', X.nbytes // 5)
  np.save(tmp_path / 'x.npy', X)
  return np.load(tmp_path / 'x.npy', mmap_mode='r')


def test_a_large_file_is_streamed_to_the_same_result(mapped):
  assert inputs.place(mapped).is_streamed
  assert not inputs.place(mapped[:100]).is_streamed
  options = {'num_clusters': 4, 'init': X[:8].reshape(2, 4, 5)}
  streamed, whole = (kmeans.fit(KEY, x, **options) for x in (mapped, X))
  assert_close(streamed, whole)
  for function in (kmeans.predict, kmeans.transform):
    np.testing.assert_allclose(
      function(whole.centers, mapped), function(whole.centers, X), rtol=1e-5
    )
  np.testing.assert_allclose(
    kmeans.score(whole.centers, mapped, WEIGHT),
    kmeans.score(whole.centers, X, WEIGHT),
    rtol=1e-5,
  )


@pytest.mark.parametrize('init', seeding.SEEDINGS)
def test_a_stream_is_seeded_and_weighted(mapped, init):
  options = {'num_clusters': 4, 'num_restarts': 2, 'init': init}
  streamed, whole = (
    kmeans.fit(KEY, x, sample_weight=WEIGHT, **options) for x in (mapped, X)
  )
  np.testing.assert_allclose(streamed.inertia, whole.inertia, rtol=0.05)
  assert streamed.counts.sum() == WEIGHT.sum()


def test_a_stream_is_fitted_on_the_same_batches(mapped):
  options = {
    'num_clusters': 4, 'init': X[:4], 'batch_size': 32, 'num_batches': 5
  }  # fmt: skip
  assert_close(
    kmeans.fit_minibatch(KEY, mapped, **options),
    kmeans.fit_minibatch(KEY, X, **options),
  )


def test_no_more_than_a_block_of_a_stream_is_sent_at_once(mapped, monkeypatch):
  sizes = []
  put = jax.device_put

  def record(arrays, *args, **kwargs):
    sizes.extend(a.size for a in jax.tree.leaves(arrays) if hasattr(a, 'size'))
    return put(arrays, *args, **kwargs)

  monkeypatch.setattr(jax, 'device_put', record)
  result = kmeans.fit(KEY, mapped, num_clusters=4, init=X[:4])
  kmeans.predict(result.centers, mapped)
  assert X.size // 6 < max(sizes) <= X.size // 5


def test_an_empty_cluster_takes_a_row_of_a_stream(mapped):
  start = np.concatenate([X[:3], np.full((1, 5), 1e3, np.float32)])
  streamed, whole = (
    kmeans.fit(KEY, x, num_clusters=4, init=start) for x in (mapped, X)
  )
  assert_close(streamed, whole)
  assert (streamed.counts > 0).all()


def test_values_of_a_stream_are_checked(mapped):
  bad = np.array(mapped)
  bad[200, 3] = np.nan
  with pytest.raises(inputs.InputError, match='at row 200, column 3'):
    kmeans.fit(KEY, bad, num_clusters=4)
  np.save(mapped.filename, bad)
  bad = np.load(mapped.filename, mmap_mode='r')
  with pytest.raises(inputs.InputError, match='at row 200, column 3'):
    kmeans.fit(KEY, bad, num_clusters=4)


# Values that are not finite, among more rows than one look takes


@pytest.mark.parametrize('where', ['one device', 'two devices', 'a stream'])
@pytest.mark.parametrize('row', [0, 9_999, 65_535])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_value_among_many_that_is_not_finite_is_found(
  value, row, where, monkeypatch
):
  x = np.random.default_rng(0).normal(size=(65_536, 20)).astype(np.float32)
  x[row, 7] = value
  if where == 'two devices':
    x = sharded(x, two_devices())
  elif where == 'a stream':
    monkeypatch.setattr(inputs.memory, 'device_bytes', lambda: 1.0)
  message = rf'1 values .* \({value}\) at row {row}, column 7'
  with pytest.raises(InputError, match=message):
    kmeans.fit(KEY, x, num_clusters=2)

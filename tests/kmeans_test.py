"""k-means: worked examples, independent references and laws."""

import functools
import gzip
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
from point_sets import blobs, same_partition

from jaxclust import kmeans
from jaxclust.algorithms import seeding
from jaxclust.inputs import METRICS

KEY = jax.random.key(0)

LINE = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)

# The number of restarts has tests of its own.
fit = functools.partial(kmeans.fit, num_restarts=2)


def in_units(objective, state):
  """An objective of the frame in the data's units."""
  return np.asarray(objective) * np.square(state.frame.scale)


# Worked examples:  0 1 . . . . . . . . 10 11


def test_four_points_on_a_line():
  result = fit(KEY, LINE, num_clusters=2, init=LINE[:2])
  np.testing.assert_allclose(
    np.sort(result.centers[:, 0]), [0.5, 10.5], rtol=1e-6
  )
  np.testing.assert_allclose(result.inertia, 4 * 0.25, rtol=1e-5)
  np.testing.assert_array_equal(result.counts, [2, 2])
  labels = kmeans.predict(result.centers, LINE)
  assert labels.dtype == jnp.int32
  assert labels[0] == labels[1] != labels[2] == labels[3]
  assert result.converged


def test_one_step_by_hand():
  # Centers 0 and 1 take {0} and {1, 10, 11}; they move to 0 and 22/3.
  state = kmeans.start(KEY, LINE, num_clusters=2, init=LINE[:2])
  np.testing.assert_allclose(in_units(state.objective, state), [181], rtol=1e-6)
  state, history = kmeans.run(state, LINE, 1)
  centers = kmeans.centers_of_runs(state)[0]
  np.testing.assert_allclose(centers[:, 0], [0, 22 / 3], atol=1e-6)
  inertia = 0 + 1 + (10 - 22 / 3) ** 2 + (11 - 22 / 3) ** 2
  np.testing.assert_allclose(in_units(state.objective, state), [inertia], 1e-6)
  np.testing.assert_array_equal(history[0], state.objective)
  assert state.num_steps == 1


def test_clusters_are_numbered_by_size():
  x = np.concatenate([np.zeros(2), np.ones(5), np.full(3, 9)])[:, None]
  result = fit(KEY, x.astype(np.float32), num_clusters=3)
  np.testing.assert_array_equal(result.counts, [5, 3, 2])
  np.testing.assert_allclose(result.centers[:, 0], [1, 9, 0], atol=1e-5)


# Independent references


@pytest.mark.parametrize('weighted', [False, True])
def test_it_ends_where_scikit_learn_ends_from_the_same_start(weighted):
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(2000, 20)).astype(np.float32)
  starts = x[rng.choice(len(x), (3, 8))]
  weight = rng.uniform(0.1, 3, size=len(x)) if weighted else None
  for start in starts:
    peer = sklearn.cluster.KMeans(8, init=start, n_init=1, tol=0).fit(
      x, sample_weight=weight
    )
    ours = kmeans.fit(
      KEY, x, num_clusters=8, init=start, tol=0, sample_weight=weight
    )
    np.testing.assert_allclose(ours.inertia, peer.inertia_, rtol=1e-4)
    assert same_partition(kmeans.predict(ours.centers, x), peer.labels_)


@pytest.mark.slow
@pytest.mark.skipif(
  'JAXCLUST_RAW_DIR' not in os.environ,
  reason='$JAXCLUST_RAW_DIR does not name the files of Fashion-MNIST',
)
def test_on_fashion_mnist_starts_end_at_scikit_learns_inertia():
  path = pathlib.Path(os.environ['JAXCLUST_RAW_DIR'])
  with gzip.open(path / 'train-images-idx3-ubyte.gz') as file:
    pixels = np.frombuffer(file.read(), np.uint8, offset=16)
  x = pixels.reshape(60_000, 784).astype(np.float32) / 255
  state = kmeans.start(KEY, x, num_clusters=10, num_restarts=2)
  starts = np.asarray(kmeans.centers_of_runs(state))
  ours = kmeans.fit(KEY, x, num_clusters=10, init=starts)
  theirs = [
    sklearn.cluster.KMeans(10, init=start, n_init=1).fit(x).inertia_
    for start in starts
  ]
  np.testing.assert_allclose(ours.inertias, theirs, rtol=1e-4)
  np.testing.assert_allclose(ours.inertia, min(theirs), rtol=1e-4)


def test_float32_agrees_with_float64():
  x, _ = blobs(spread=3.0)
  single = fit(KEY, x, num_clusters=4, init=x[:4])
  with jax.enable_x64(True):
    wide = x.astype(np.float64)
    double = fit(KEY, wide, num_clusters=4, init=wide[:4])
    assert double.inertia.dtype == jnp.float64
  np.testing.assert_allclose(single.inertia, double.inertia, rtol=1e-4)
  np.testing.assert_allclose(single.centers, double.centers, rtol=1e-4)


@pytest.mark.parametrize('scale', [1e-6, 1.0, 3e5])
def test_a_center_lies_at_no_distance_from_itself(scale):
  rng = np.random.default_rng(0)
  for _ in range(10):
    centers = scale * rng.normal(size=(7, 5)) + rng.normal(size=5)
    centers = centers.astype(np.float32)
    distances = kmeans.transform(centers, centers)
    np.testing.assert_array_equal(np.diagonal(distances), np.zeros(7))
    assert kmeans.score(centers, centers) == 0


def test_distances_are_scikit_learns():
  x, _ = blobs(spread=4.0)
  x += 1000
  centers = x[:7] + 0.5
  found = kmeans.transform(centers, x, block_size=64)
  chex.assert_shape(found, (300, 7))
  exact = sklearn.metrics.pairwise.euclidean_distances(
    x.astype(np.float64), centers.astype(np.float64)
  )
  np.testing.assert_allclose(found, exact, rtol=1e-4)
  found = kmeans.transform(centers - 1000, x - 1000, metric='cosine')
  exact = sklearn.metrics.pairwise.cosine_distances(x - 1000, centers - 1000)
  np.testing.assert_allclose(found, exact, atol=1e-5)


def test_cosine_clusters_end_at_the_directions_of_their_means():
  x, _ = blobs(spread=4.0)
  result = fit(KEY, x, num_clusters=4, metric='cosine', tol=0.0)
  labels = kmeans.predict(result.centers, x, metric='cosine')
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  means = np.stack([unit[labels == k].mean(axis=0) for k in range(4)])
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  np.testing.assert_allclose(result.centers, means, atol=1e-5)
  cos = np.einsum('nd,nd->n', unit, means[labels])
  np.testing.assert_allclose(result.inertia, 2 * (1 - cos).sum(), rtol=1e-4)
  score = kmeans.score(result.centers, x, metric='cosine')
  np.testing.assert_allclose(score, -result.inertia, rtol=1e-4)


# Laws


def test_the_length_of_a_row_is_nothing_to_the_cosine():
  x, _ = blobs(spread=4.0)
  lengths = np.geomspace(1e-6, 1e6, len(x), dtype=np.float32)[:, None]
  plain, scaled = (
    fit(KEY, rows, num_clusters=4, metric='cosine', init=x[:4])
    for rows in (x, x * lengths)
  )
  np.testing.assert_allclose(plain.centers, scaled.centers, atol=1e-5)


def test_the_score_is_the_inertia():
  x, _ = blobs(spread=4.0)
  weight = np.linspace(0, 2, len(x))
  result = fit(KEY, x, num_clusters=4, sample_weight=weight)
  score = kmeans.score(result.centers, x, weight)
  np.testing.assert_allclose(score, -result.inertia, rtol=1e-5)


@pytest.mark.parametrize('metric', METRICS)
def test_the_inertia_never_rises(metric):
  x = np.random.default_rng(0).uniform(size=(300, 5)).astype(np.float32)
  state = kmeans.start(
    KEY, x, num_clusters=4, num_restarts=3, init='random', metric=metric
  )
  first = state.objective
  _, history = kmeans.run(state, x, 30, tol=0.0)
  history = np.concatenate([first[None], history])
  assert history.shape[1] == 3
  assert (np.diff(history, axis=0) <= 1e-6 * history[0]).all()
  assert (history[0] > 1.02 * history[-1]).all()


def test_a_state_has_the_inertia_and_the_sums_of_its_own_centers():
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=8, num_restarts=2)
  state, _ = kmeans.run(state, x, 2)
  inside = np.asarray(state.frame.apply(jnp.asarray(x)))
  for r in range(2):
    centers = np.asarray(state.params.centers[r])
    squared = np.square(inside[:, None] - centers[None]).sum(-1)
    members = np.eye(8)[squared.argmin(1)]
    np.testing.assert_allclose(state.objective[r], squared.min(1).sum(), 1e-5)
    np.testing.assert_allclose(state.stats.counts[r], members.sum(0))
    np.testing.assert_allclose(
      state.stats.sums[r], members.T @ inside, atol=1e-3
    )


@pytest.mark.parametrize(
  ('offset', 'scale'), [(1e4, 1), (1e5, 1), (0, 1e6), (0, 1e-6)]
)
def test_offset_and_scale_do_not_change_the_labels(offset, scale):
  x, _ = blobs(spread=2.0)
  moved = (x + np.float32(offset)) * np.float32(scale)
  # What float32 can hold of the moved data, moved back.
  plain = moved / np.float32(scale) - np.float32(offset)
  labels = [
    kmeans.predict(fit(KEY, a, num_clusters=4).centers, a)
    for a in (plain, moved)
  ]
  assert same_partition(*labels)


@pytest.mark.parametrize('metric', METRICS)
def test_permuted_rows_give_the_same_partition_and_numbers(metric):
  """From given starts: draws depend on the order of the rows."""
  x, _ = blobs(spread=4.0)
  options = {'num_clusters': 4, 'init': x[:8].reshape(2, 4, 5)}
  centers = fit(KEY, x, metric=metric, **options).centers
  labels = np.asarray(kmeans.predict(centers, x, metric=metric))
  for seed in range(3):
    order = np.random.default_rng(seed).permutation(len(x))
    centers = fit(KEY, x[order], metric=metric, **options).centers
    found = kmeans.predict(centers, x[order], metric=metric)
    np.testing.assert_array_equal(found, labels[order])


def test_whole_weights_are_repeated_rows():
  x, _ = blobs(spread=4.0)
  weight = np.random.default_rng(0).integers(0, 3, size=len(x))
  weighted = fit(KEY, x, num_clusters=4, init=x[:4], sample_weight=weight)
  repeated = fit(KEY, np.repeat(x, weight, axis=0), num_clusters=4, init=x[:4])
  np.testing.assert_allclose(weighted.centers, repeated.centers, atol=1e-5)
  np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=1e-5)


@pytest.mark.parametrize('factor', [1000, 1e-9])
def test_weights_count_only_in_proportion(factor):
  x, _ = blobs(spread=4.0)
  weight = np.random.default_rng(0).uniform(size=len(x)).astype(np.float32)
  one = fit(KEY, x, num_clusters=4, sample_weight=weight)
  many = fit(KEY, x, num_clusters=4, sample_weight=weight * factor)
  np.testing.assert_allclose(one.centers, many.centers, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(one.counts * factor, many.counts, rtol=1e-5)


@pytest.mark.parametrize('init', seeding.SEEDINGS)
def test_padding_does_not_change_the_fit(init):
  x, _ = blobs(spread=4.0)
  padding = np.concatenate([x[:20], np.full((20, 5), 1e3, np.float32)])
  padded = np.concatenate([padding, x])
  weight = np.concatenate([np.zeros(40), np.ones(len(x))])
  plain = fit(KEY, x, num_clusters=4, init=init)
  result = fit(KEY, padded, num_clusters=4, init=init, sample_weight=weight)
  np.testing.assert_allclose(result.centers, plain.centers, atol=1e-4)
  np.testing.assert_allclose(result.inertias, plain.inertias, rtol=1e-5)


@pytest.mark.parametrize('init', seeding.SEEDINGS)
def test_a_pass_in_blocks_is_a_pass_over_the_whole(init):
  x, _ = blobs(spread=4.0)
  whole = fit(KEY, x, num_clusters=4, init=init)
  blocks = fit(KEY, x, num_clusters=4, init=init, block_size=70)
  np.testing.assert_allclose(whole.centers, blocks.centers, atol=1e-5)
  np.testing.assert_array_equal(
    kmeans.predict(whole.centers, x),
    kmeans.predict(blocks.centers, x, block_size=11),
  )


def test_predicting_a_part_is_a_part_of_predicting():
  x, _ = blobs()
  labels = kmeans.predict(x[:9], x)
  np.testing.assert_array_equal(kmeans.predict(x[:9], x[31:77]), labels[31:77])


def test_a_solution_is_a_fixed_point():
  x, _ = blobs(spread=4.0)
  first = fit(KEY, x, num_clusters=4, tol=0.0)
  again = fit(KEY, x, num_clusters=4, init=first.centers, tol=1e-10)
  assert again.num_steps == 1
  np.testing.assert_allclose(again.centers, first.centers, atol=1e-5)


def test_a_key_gives_one_result():
  x, _ = blobs(spread=5.0)
  one = fit(KEY, x, num_clusters=4)
  two = fit(KEY, x, num_clusters=4)
  chex.assert_trees_all_equal(one, two)

"""k-means: seeding, Lloyd's algorithm, its laws and its corners."""

import functools
import gzip
import logging
import os
import pathlib
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.datasets
from sklearn.metrics import adjusted_rand_score

from jaxclust import kmeans
from jaxclust.numerics import InputError, StopReason

pytestmark = pytest.mark.usefixtures('light_compiler')

KEY = jax.random.key(0)

INITS = ['k-means++', 'k-means||', 'random']

# Few restarts compile fast; the number of restarts has tests of its own.
fit = functools.partial(kmeans.fit, num_restarts=2)


def blobs(num_points=300, num_features=5, num_clusters=4, spread=1.0, seed=0):
  x, labels = sklearn.datasets.make_blobs(
    num_points, num_features, centers=num_clusters, cluster_std=spread,
    random_state=seed,
  )  # fmt: skip
  return x.astype(np.float32), labels


def same_partition(a, b):
  return adjusted_rand_score(a, b) == 1


# A worked example:  0 1 . . . . . . . . 10 11


LINE = jnp.array([[0.0], [1.0], [10.0], [11.0]])


def test_four_points_on_a_line():
  result = fit(KEY, LINE, num_clusters=2, init=jnp.array([[0.0], [1.0]]))
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
  state = kmeans.start(
    KEY, LINE, num_clusters=2, init=jnp.array([[0.0], [1.0]])
  )
  frame = state.frame
  np.testing.assert_allclose(
    state.inertia * frame.scale**2, [0 + 0 + 81 + 100], rtol=1e-6
  )
  state = kmeans.step(state, LINE)
  centers = frame.leave(state.centers[0])
  np.testing.assert_allclose(centers[:, 0], [0, 22 / 3], atol=1e-6)
  inertia = 0 + 1 + (10 - 22 / 3) ** 2 + (11 - 22 / 3) ** 2
  np.testing.assert_allclose(state.inertia * frame.scale**2, [inertia], 1e-6)


def test_seeds_fall_into_different_blobs():
  x, truth = blobs(num_clusters=6, spread=0.05)
  state = kmeans.start(KEY, x, num_clusters=6, num_restarts=4)
  centers = state.frame.leave(state.centers)
  for run in centers:
    seeds = np.square(x[:, None] - np.asarray(run)[None]).sum(-1).argmin(0)
    np.testing.assert_allclose(x[seeds], run, atol=1e-4)
    assert len(set(truth[seeds])) == 6


def test_random_seeds_are_different_rows():
  x = np.arange(12, dtype=np.float32).reshape(6, 2)
  state = kmeans.start(KEY, x, num_clusters=6, init='random', num_restarts=3)
  for run in state.frame.leave(state.centers):
    np.testing.assert_allclose(np.sort(run[:, 0]), x[:, 0], atol=1e-5)


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
@pytest.mark.usefixtures('whole_compiler')
@pytest.mark.skipif(
  'JAXCLUST_RAW_DIR' not in os.environ,
  reason='$JAXCLUST_RAW_DIR does not name the files of Fashion-MNIST',
)
def test_on_fashion_mnist_ten_starts_end_at_scikit_learns_inertia():
  path = pathlib.Path(os.environ['JAXCLUST_RAW_DIR'])
  with gzip.open(path / 'train-images-idx3-ubyte.gz') as file:
    pixels = np.frombuffer(file.read(), np.uint8, offset=16)
  x = pixels.reshape(60_000, 784).astype(np.float32) / 255
  state = kmeans.start(KEY, x, num_clusters=10, num_restarts=10)
  starts = np.asarray(state.frame.leave(state.centers))
  ours = kmeans.fit(KEY, x, num_clusters=10, init=starts)
  theirs = [
    sklearn.cluster.KMeans(10, init=start, n_init=1).fit(x).inertia_
    for start in starts
  ]
  np.testing.assert_allclose(ours.inertias, theirs, rtol=1e-4)
  np.testing.assert_allclose(ours.inertia, min(theirs), rtol=1e-4)


def test_greedy_seeding_is_as_good_as_scikit_learns():
  x, _ = blobs(num_points=1000, num_clusters=20, num_features=2)
  ours = kmeans.start(KEY, x, num_clusters=20, num_restarts=30)
  theirs = [
    np.square(
      x[:, None] - sklearn.cluster.kmeans_plusplus(x, 20, random_state=s)[0]
    ).sum(-1).min(1).sum()
    for s in range(30)
  ]  # fmt: skip
  ours = np.asarray(ours.inertia * ours.frame.scale**2)
  assert abs(ours.mean() / np.mean(theirs) - 1) < 0.1


@pytest.mark.slow
def test_float32_agrees_with_float64():
  x, _ = blobs(spread=3.0)
  single = fit(KEY, x, num_clusters=4, init=x[:4])
  with jax.enable_x64(True):
    wide = x.astype(np.float64)
    double = fit(KEY, wide, num_clusters=4, init=wide[:4])
    assert double.inertia.dtype == jnp.float64
  np.testing.assert_allclose(single.inertia, double.inertia, rtol=1e-4)
  np.testing.assert_allclose(single.centers, double.centers, rtol=1e-4)


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


def test_many_seeds_in_two_rounds_are_as_good_as_one_by_one():
  x, _ = blobs(num_points=2000, num_clusters=60, seed=1)
  one_by_one, in_rounds = (
    kmeans.start(KEY, x, num_clusters=60, init=init).inertia
    for init in ('k-means++', 'k-means||')
  )
  assert in_rounds.mean() < 1.2 * one_by_one.mean()
  assert len(set(in_rounds.tolist())) == 10


@pytest.mark.slow
@pytest.mark.parametrize('metric', kmeans.METRICS)
def test_batches_end_near_the_inertia_of_all_points(metric):
  x, _ = blobs(num_points=3000, num_clusters=8, spread=2.0)
  options = {'num_clusters': 8, 'metric': metric}
  whole = kmeans.fit(KEY, x, **options)
  parts = kmeans.fit_minibatch(KEY, x, batch_size=128, **options)
  assert whole.inertia * 0.999 < parts.inertia < whole.inertia * 1.05
  chex.assert_shape(parts.inertias, (3,))
  assert parts.counts.sum() == 3000
  assert parts.num_steps == 100


# Laws


@pytest.mark.parametrize('metric', kmeans.METRICS)
def test_bounds_change_nothing(metric):
  x = np.asarray(jax.random.uniform(KEY, (1000, 3))) - 0.3
  options = {'num_clusters': 20, 'num_restarts': 2, 'init': 'random'}
  state = kmeans.start(KEY, x, metric=metric, **options)
  bounded, history = kmeans.run(state, x, 15, tol=0.0)
  step = jax.jit(kmeans.step)
  for i in range(15):
    state = step(state, x, tol=0.0)
    np.testing.assert_allclose(history[i], state.inertia, rtol=1e-5)
  chex.assert_trees_all_close(bounded.centers, state.centers, atol=1e-4)
  np.testing.assert_array_equal(bounded.counts, state.counts)


def test_runs_in_turn_are_runs_side_by_side():
  """On a CPU large data take another path than small ones."""
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=7, num_restarts=3)
  points = kmeans._points(x, None, state.frame, 64)
  advance = functools.partial(
    kmeans._advance, points=points, tol=1e-4, block_size=64
  )
  bounds = kmeans._no_bounds(state, len(x))
  limit = jnp.array([300, 300, 2])
  together, in_turn = (
    jax.jit(functools.partial(iterate, advance, num_rows=20))(
      state, bounds, limit
    )
    for iterate in (kmeans._iterate, kmeans._iterate_in_turn)
  )
  chex.assert_trees_all_close(together, in_turn, rtol=1e-5, atol=1e-5)
  assert in_turn[0].num_steps[2] == 2
  assert len(set(in_turn[0].num_steps.tolist())) == 3  # they end apart


def test_a_batch_of_all_points_is_a_step():
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
  one_step, _ = kmeans.run(state, x, 1)
  batch = kmeans.update(state, x, decay=0.0)
  chex.assert_trees_all_close(
    batch._replace(stop_reason=0), one_step._replace(stop_reason=0), rtol=1e-4
  )


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_the_inertia_of_an_update_is_that_of_its_batch(decay):
  x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
  state = kmeans.start(KEY, x[:100], num_clusters=3, num_restarts=2)
  for batch in (x[100:200], x[200:]):
    state = kmeans.update(state, batch, decay=decay)
    for centers, inertia in zip(state.centers, state.inertia, strict=True):
      exact = -kmeans.score(state.frame.leave(centers), batch)
      scale = np.square(state.frame.scale)
      np.testing.assert_allclose(inertia * scale, exact, rtol=1e-4)


def test_batches_are_remembered_as_decay_says():
  x, labels = blobs(spread=0.1)
  state = kmeans.start(KEY, x[:100], num_clusters=4, num_restarts=1)
  for decay in (1.0, 0.5):
    new = kmeans.update(state, x[100:], decay=decay)
    counts = decay * np.sort(np.bincount(labels[:100]))
    assert new.counts.sum() == decay * 100 + 200
    before = decay * 100 / (decay * 100 + 200)
    assert before == pytest.approx(counts.sum() / new.counts.sum())
  # Means of all points, once they have all been given.
  state = kmeans.update(kmeans.update(state, x[100:]), x[:1], decay=1.0)
  means = state.frame.leave(state.sums / state.counts[..., None])[0]
  sizes = np.bincount(labels).astype(float)
  sizes[labels[0]] += 1
  np.testing.assert_allclose(np.sort(state.counts[0]), np.sort(sizes))
  exact = np.stack([x[labels == k].mean(axis=0) for k in range(4)])
  gaps = np.linalg.norm(exact[:, None] - means[None], axis=2).min(axis=1)
  assert gaps.max() < 0.02


def test_a_batch_of_nan_stops_a_run_and_keeps_it():
  x, _ = blobs()
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=1)
  broken = kmeans.update(state, np.full_like(x[:9], np.nan))
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.centers, state.centers)
  again = kmeans.update(broken, x[:9])
  assert again.stop_reason[0] == StopReason.NONFINITE


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


@pytest.mark.parametrize('metric', kmeans.METRICS)
def test_the_inertia_never_rises(metric):
  x = jax.random.uniform(KEY, (1000, 10))
  state = kmeans.start(
    KEY, x, num_clusters=12, num_restarts=3, init='random', metric=metric
  )
  first = state.inertia
  _, history = kmeans.run(state, x, 30, tol=0.0)
  chex.assert_shape(history, (30, 3))
  history = np.concatenate([first[None], history])
  assert (np.diff(history, axis=0) <= 1e-6 * history[0]).all()
  assert (history[0] > 1.02 * history[-1]).all()


def test_a_state_has_the_inertia_and_the_sums_of_its_own_centers():
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
  state, _ = kmeans.run(state, x, 2)
  inside = np.asarray(state.frame.enter(jnp.asarray(x)))
  for r in range(2):
    squared = np.square(inside[:, None] - np.asarray(state.centers[r])[None])
    squared = squared.sum(-1)
    members = np.eye(4)[squared.argmin(1)]
    np.testing.assert_allclose(state.inertia[r], squared.min(1).sum(), 1e-5)
    np.testing.assert_allclose(state.counts[r], members.sum(0))
    np.testing.assert_allclose(state.sums[r], members.T @ inside, atol=1e-3)


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
  agree = adjusted_rand_score(*labels)
  assert agree == 1


@pytest.mark.parametrize('init', INITS)
def test_permuted_rows_give_the_same_partition_and_numbers(init):
  x = np.random.default_rng(0).uniform(size=(500, 4)).astype(np.float32)
  x = np.concatenate([x, x[:50]])  # with duplicates
  labels = np.asarray(
    kmeans.predict(fit(KEY, x, num_clusters=6, init=init).centers, x)
  )
  for seed in range(3):
    order = np.random.default_rng(seed).permutation(len(x))
    result = fit(KEY, x[order], num_clusters=6, init=init)
    np.testing.assert_array_equal(
      kmeans.predict(result.centers, x[order]), labels[order]
    )


def test_clusters_are_numbered_by_size():
  x = np.concatenate([np.zeros(2), np.ones(5), np.full(3, 9)])[:, None]
  result = fit(KEY, x.astype(np.float32), num_clusters=3)
  np.testing.assert_array_equal(result.counts, [5, 3, 2])
  np.testing.assert_allclose(result.centers[:, 0], [1, 9, 0], atol=1e-5)


def test_whole_weights_are_repeated_rows():
  x, _ = blobs(num_points=60, spread=4.0)
  weight = np.random.default_rng(0).integers(0, 4, size=60)
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


def padded_with_rows_of_no_weight(x):
  """Rows of x with copies of some and far ones before them, and weights."""
  padding = np.concatenate([x[:20], np.full((20, 5), 1e3, np.float32)])
  weight = np.concatenate([np.zeros(40), np.ones(len(x))])
  return np.concatenate([padding, x]), weight


@pytest.mark.parametrize('init', INITS)
def test_padding_does_not_change_the_fit(init):
  x, _ = blobs(spread=4.0)
  padded, weight = padded_with_rows_of_no_weight(x)
  plain = fit(KEY, x, num_clusters=4, init=init)
  result = fit(KEY, padded, num_clusters=4, init=init, sample_weight=weight)
  np.testing.assert_allclose(result.centers, plain.centers, atol=1e-4)
  np.testing.assert_allclose(result.inertias, plain.inertias, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [32, 105])
def test_padding_does_not_change_a_fit_on_batches(batch_size):
  """Starts are from a sample of 96 rows, or from all but the padding."""
  x, _ = blobs(spread=4.0)
  padded, weight = padded_with_rows_of_no_weight(x)
  fit = functools.partial(
    kmeans.fit_minibatch, KEY, num_clusters=4, batch_size=batch_size
  )
  plain, result = fit(x), fit(padded, sample_weight=weight)
  np.testing.assert_allclose(result.centers, plain.centers, atol=1e-4)
  np.testing.assert_allclose(result.inertias, plain.inertias, rtol=1e-5)


@pytest.mark.slow
def test_a_pass_in_blocks_is_a_pass_over_the_whole():
  x, _ = blobs(spread=4.0)
  whole = fit(KEY, x, num_clusters=4, block_size=len(x))
  blocks = fit(KEY, x, num_clusters=4, block_size=7)
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


# Transformations


class TransformationsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_a_step_does_not_depend_on_jit(self):
    x = jnp.asarray(blobs(spread=4.0)[0])
    state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
    moved = self.variant(kmeans.step)(state, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    chex.assert_tree_all_finite(moved)
    occupied = np.asarray(state.sums / state.counts[..., None])
    np.testing.assert_allclose(moved.centers, occupied, atol=1e-5)

  @pytest.mark.slow
  def test_a_fit_under_vmap_is_a_loop_of_fits(self):
    x = jnp.stack([jnp.asarray(blobs(spread=4.0, seed=s)[0]) for s in range(3)])

    batched = jax.vmap(lambda x: fit(KEY, x, num_clusters=4))(x)
    for i in range(3):
      alone = fit(KEY, x[i], num_clusters=4)
      np.testing.assert_allclose(batched.inertia[i], alone.inertia, rtol=1e-6)
      np.testing.assert_array_equal(
        kmeans.predict(batched.centers[i], x[i]),
        kmeans.predict(alone.centers, x[i]),
      )

  @pytest.mark.slow
  def test_a_fit_does_not_depend_on_jit(self):
    x = jnp.asarray(blobs(num_points=40, spread=4.0)[0])
    plain = fit(KEY, x, num_clusters=4)
    jitted = jax.jit(lambda x: fit(KEY, x, num_clusters=4))(x)
    np.testing.assert_allclose(jitted.inertias, plain.inertias, rtol=1e-6)
    np.testing.assert_array_equal(
      kmeans.predict(jitted.centers, x), kmeans.predict(plain.centers, x)
    )

  def test_restarts_together_are_restarts_in_a_loop(self):
    x = blobs(spread=5.0, num_clusters=8)[0]
    state = kmeans.start(KEY, x, num_clusters=8, num_restarts=7)
    starts = state.frame.leave(state.centers)
    state, _ = kmeans.run(state, x)
    together = kmeans.best(state)
    alone = [fit(KEY, x, num_clusters=8, init=s) for s in starts]
    for run, one in zip(state.frame.leave(state.centers), alone, strict=True):
      assert same_partition(
        kmeans.predict(run, x), kmeans.predict(one.centers, x)
      )
    inertias = [float(a.inertia) for a in alone]
    np.testing.assert_allclose(together.inertias, inertias, rtol=1e-6)
    best = alone[int(np.argmin(inertias))]
    np.testing.assert_array_equal(
      kmeans.predict(together.centers, x), kmeans.predict(best.centers, x)
    )

  @pytest.mark.slow
  def test_runs_in_parts_are_a_whole_run(self):
    x = blobs(spread=5.0, num_clusters=8)[0]
    state = kmeans.start(KEY, x, num_clusters=8, num_restarts=5)
    whole, _ = kmeans.run(state, x)
    calls = 0
    while (state.stop_reason == StopReason.RUNNING).any():
      state, _ = kmeans.run(state, x, 3)
      calls += 1
    assert calls > 1
    chex.assert_trees_all_close(state, whole, rtol=1e-6, atol=1e-6)


def test_a_second_call_with_a_new_tolerance_compiles_nothing(caplog):
  x, _ = blobs(num_points=301)  # of which no other test has programs

  def compiled(key, **options):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      result = fit(key, x, num_clusters=4, **options)
      kmeans.predict(result.centers, x)
    return [text for text in caplog.messages if 'XLA compilation' in text]

  other = jax.random.key(1)
  assert compiled(KEY, tol=1e-4, max_steps=50)
  assert not compiled(KEY, tol=1e-4, max_steps=50)
  assert not compiled(other, tol=1e-3, max_steps=60)


def test_a_key_gives_one_result():
  x, _ = blobs(spread=5.0)
  one = fit(KEY, x, num_clusters=4)
  two = fit(KEY, x, num_clusters=4)
  chex.assert_trees_all_equal(one, two)


# Corners


def test_as_many_clusters_as_points_have_no_inertia():
  x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
  assert fit(KEY, x, num_clusters=12).inertia == 0


@pytest.mark.parametrize('init', INITS)
def test_one_point_is_a_cluster(init):
  result = fit(KEY, LINE[2:3], num_clusters=1, init=init)
  np.testing.assert_array_equal(result.centers, [[10]])
  assert result.inertia == 0
  assert result.converged


def test_the_center_of_one_cluster_is_the_mean():
  x, _ = blobs()
  result = fit(KEY, x, num_clusters=1)
  np.testing.assert_allclose(result.centers[0], x.mean(axis=0), atol=1e-5)
  total = np.square(x - x.mean(axis=0)).sum()
  np.testing.assert_allclose(result.inertia, total, rtol=1e-5)


@pytest.mark.parametrize('init', INITS)
def test_equal_rows_are_one_distinct_cluster(init):
  x = np.full((21, 4), 5.5, np.float32)
  with pytest.warns(UserWarning, match='1 distinct of 5'):
    result = fit(KEY, x, num_clusters=5, init=init)
  assert result.inertia == 0
  assert result.num_steps <= 2
  chex.assert_tree_all_finite(result)


@pytest.mark.parametrize('init', INITS)
def test_too_few_distinct_rows_give_that_many_labels(init):
  x = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 7, axis=0)
  x = x.astype(np.float32)
  with pytest.warns(UserWarning, match='3 distinct of 5'):
    result = fit(KEY, x, num_clusters=5, init=init, tol=0.0)
  assert len(np.unique(kmeans.predict(result.centers, x))) == 3
  assert result.converged


def test_a_constant_feature_changes_nothing():
  x, _ = blobs(spread=3.0)
  wider = np.concatenate([x, np.full((len(x), 1), 4.0, np.float32)], axis=1)
  plain = fit(KEY, x, num_clusters=4, init=x[:4])
  result = fit(KEY, wider, num_clusters=4, init=wider[:4])
  np.testing.assert_allclose(result.centers[:, :-1], plain.centers, atol=1e-5)


def test_an_empty_cluster_takes_the_farthest_point():
  x = jnp.array([[0.0], [1.0], [2.0], [50.0]])
  start = jnp.array([[1.0], [-1000.0]])
  result = fit(KEY, x, num_clusters=2, init=start)
  np.testing.assert_allclose(result.centers[:, 0], [1, 50], atol=1e-5)
  np.testing.assert_array_equal(result.counts, [3, 1])
  labels = kmeans.predict(result.centers, x)
  np.testing.assert_array_equal(labels, [0, 0, 0, 1])


@pytest.mark.parametrize('num_steps', [1, 5])
def test_relocated_clusters_hold_the_points_that_are_nearest(num_steps):
  x, _ = blobs(spread=4.0)
  far = np.full((3, 5), 1e3, np.float32) * np.arange(1, 4)[:, None]
  start = np.concatenate([x[:4], far.astype(np.float32)])
  state = kmeans.start(KEY, x, num_clusters=7, init=start)
  assert (state.counts == 0).sum() == 3
  for _ in range(5 // num_steps):
    state, _ = kmeans.run(state, x, num_steps, tol=0.0)
    centers = state.frame.leave(state.centers[0])
    labels = kmeans.predict(centers, x)
    np.testing.assert_array_equal(np.bincount(labels), state.counts[0])
    sums = np.eye(7)[labels].T @ np.asarray(state.frame.enter(jnp.asarray(x)))
    np.testing.assert_allclose(state.sums[0], sums, atol=1e-3)
  assert (state.counts > 0).all()


@pytest.mark.slow
def test_a_cluster_that_starts_empty_takes_points_of_batches():
  x, _ = blobs(spread=4.0)
  start = np.concatenate([x[:3], np.full((1, 5), 1e3, np.float32)])
  result = kmeans.fit_minibatch(
    KEY, x, num_clusters=4, init=start, batch_size=64
  )
  labels = kmeans.predict(result.centers, x)
  np.testing.assert_array_equal(np.bincount(labels), result.counts)
  assert (result.counts > 0).all()


def test_no_tolerance_is_so_large_that_a_cluster_stays_empty():
  x = jnp.array([[0.0], [1.0], [2.0], [50.0]])
  start = jnp.array([[1.0], [-1000.0]])
  result = fit(KEY, x, num_clusters=2, init=start, tol=1e9)
  assert result.converged
  np.testing.assert_array_equal(result.counts, [3, 1])


def test_equal_initial_centers_part():
  x, _ = blobs(num_clusters=2)
  result = fit(KEY, x, num_clusters=2, init=np.stack([x[0], x[0]]))
  assert (result.counts > 0).all()


def test_running_out_of_steps_warns():
  x = jax.random.uniform(KEY, (500, 8))
  with pytest.warns(UserWarning, match='did not converge in 1 steps'):
    result = fit(KEY, x, num_clusters=8, max_steps=1)
  assert not result.converged
  assert result.stop_reason == StopReason.MAX_STEPS


def test_no_tolerance_still_ends():
  x = jax.random.uniform(KEY, (500, 8))
  result = fit(KEY, x, num_clusters=8, tol=0, max_steps=1000)
  assert result.converged


def test_nan_that_cannot_be_seen_is_never_converged():
  jitted = jax.jit(lambda x: fit(KEY, x, num_clusters=2))
  result = jitted(LINE.at[0, 0].set(jnp.nan))
  assert result.stop_reason == StopReason.NONFINITE
  assert not result.converged


@pytest.mark.parametrize('place', [1e5, 1e8])
def test_an_outlier_is_a_cluster_and_blurs_no_other(place):
  x, truth = blobs(spread=0.5)
  x[7] = place
  result = fit(KEY, x, num_clusters=5)
  labels = np.asarray(kmeans.predict(result.centers, x))
  np.testing.assert_array_equal(np.bincount(labels), result.counts)
  others = np.arange(len(x)) != 7
  assert same_partition(labels[others], truth[others])


@pytest.mark.parametrize('gap', [1e3, 1e4, 1e5])
def test_clusters_far_from_the_mean_keep_their_distances(gap):
  rng = np.random.default_rng(0)
  means = np.array([[0, 0], [10, 0], [gap, 0], [gap + 10, 0]])
  truth = rng.integers(0, 4, size=400)
  x = (means[truth] + rng.normal(size=(400, 2))).astype(np.float32)
  result = fit(KEY, x, num_clusters=4)
  centers = np.stack([x[truth == k].mean(axis=0) for k in range(4)])
  inertia = np.square(x.astype(np.float64) - centers[truth]).sum()
  np.testing.assert_allclose(result.inertia, inertia, rtol=1e-3)
  assert same_partition(kmeans.predict(result.centers, x), truth)


@pytest.mark.parametrize('init', INITS)
def test_rows_without_weight_are_no_seeds(init):
  x = jnp.arange(8.0)[:, None]
  weight = jnp.array([0.0, 1, 0, 1, 0, 0, 1, 0])
  state = kmeans.start(KEY, x, num_clusters=3, init=init, sample_weight=weight)
  for run in state.frame.leave(state.centers):
    np.testing.assert_allclose(np.sort(run[:, 0]), [1, 3, 6], atol=1e-5)
  with pytest.raises(InputError, match='only 3 rows have a positive weight'):
    fit(KEY, x, num_clusters=4, sample_weight=weight)


def test_an_inertia_that_turns_nan_keeps_the_last_centers():
  x = jnp.asarray(blobs(spread=5.0)[0])
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2, init='random')
  state, _ = kmeans.run(state, x, 1)
  assert (state.stop_reason == StopReason.RUNNING).all()
  broken, _ = kmeans.run(state, x.at[5, 1].set(jnp.nan), 3)
  assert (broken.stop_reason == StopReason.NONFINITE).all()
  chex.assert_trees_all_equal(broken.centers, state.centers)
  result = kmeans.best(broken)
  assert not result.converged
  with pytest.warns(UserWarning, match='the inertia is not finite'):
    kmeans.warn(result)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.uint8])
def test_narrow_data_are_summed_in_float32(dtype):
  x = jax.random.randint(KEY, (4000, 3), 0, 200).astype(dtype)
  result = fit(KEY, x, num_clusters=3, init=x[:3])
  wide = x.astype(jnp.float32)
  reference = fit(KEY, wide, num_clusters=3, init=wide[:3])
  assert result.centers.dtype == jnp.float32
  np.testing.assert_allclose(result.inertia, reference.inertia, rtol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'num_clusters': 5},
      'num_clusters is 5, but x has only 4 rows: ask for at most',
    ),
    *(
      ({'num_clusters': k}, f'num_clusters is {k!r}: .* of at least 1')
      for k in (0, -1, 2.5, 'ten')
    ),
    ({'num_clusters': 2, 'num_restarts': 0}, 'num_restarts is 0'),
    ({'num_clusters': 2, 'init': 'best'}, "init is 'best'"),
    (
      {'num_clusters': 2, 'init': np.ones((3, 1))},
      r'init has shape \(3, 1\): it must end in \[2, 1\]',
    ),
    ({'num_clusters': 2, 'init': np.ones((3, 2, 2))}, r'end in \[2, 1\]'),
    (
      {'num_clusters': 2, 'init': np.array([[1], [np.nan]])},
      'init has values that are NaN or infinite: give others',
    ),
    ({'num_clusters': 2, 'tol': -1}, 'tol is -1'),
    ({'num_clusters': 2, 'max_steps': 0}, 'max_steps is 0'),
    ({'num_clusters': 2, 'block_size': -5}, 'block_size is -5'),
    ({'num_clusters': 2, 'sample_weight': [3e37] * 4}, 'sums to 1.2e'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  with pytest.raises(InputError, match=message) as caught:
    fit(KEY, LINE, **options)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_clusters': 5}, 'num_clusters is 5, but x has only 4 rows'),
    ({'num_clusters': 'ten'}, "num_clusters is 'ten'"),
    ({'num_clusters': 2, 'init': np.full((2, 1), np.nan)}, 'NaN or infinite'),
    ({'num_clusters': 2, 'batch_size': 0}, 'batch_size is 0'),
    ({'num_clusters': 2, 'num_batches': 0.5}, 'num_batches is 0.5'),
    (
      {'num_clusters': 2, 'sample_weight': [0, 0, 1, 0]},
      'num_clusters is 2, but only 1 rows have a positive weight: ask for',
    ),
  ],
)
def test_options_of_batches_that_cannot_be_used_are_named(options, message):
  with pytest.raises(InputError, match=message):
    kmeans.fit_minibatch(KEY, LINE, **options)


@pytest.mark.parametrize(
  ('x', 'weight', 'message'),
  [
    (
      LINE.at[2, 0].set(np.nan),
      None,
      r'1 values .* NaN .* \(nan\) at row 2, column 0: remove those rows',
    ),
    (LINE.at[3, 0].set(-np.inf), None, r'\(-inf\) at row 3, column 0'),
    (LINE[:0], None, r'x has shape \(0, 1\): it must be \[N, D\]'),
    (LINE * 1e19, None, r'x reaches 1.1e\+20: beyond .* divide x by'),
    (LINE, np.zeros(4), 'sample_weight sums to 0: at least one weight must'),
    (LINE, [1, 1, -1, 1], r'sample_weight\[2\] is -1.*at least 0'),
    (LINE, [1, np.nan, 1, 1], r'sample_weight\[1\] is nan.*must be finite'),
    (LINE, np.ones(3), r'sample_weight has shape \(3,\): x has 4 rows'),
  ],
)
def test_points_and_weights_that_cannot_be_used_are_named(x, weight, message):
  calls = [
    functools.partial(function, KEY, num_clusters=2, sample_weight=weight)
    for function in (kmeans.fit, kmeans.fit_minibatch, kmeans.start)
  ]
  calls.append(lambda x: kmeans.score(LINE[:2], x, weight))
  if weight is None:
    calls.append(functools.partial(kmeans.predict, LINE[:2]))
    calls.append(functools.partial(kmeans.transform, LINE[:2]))
  for call in calls:
    with pytest.raises(InputError, match=message) as caught:
      call(x)
    assert '\n' not in str(caught.value)


def test_float64_is_cast_once_with_one_warning():
  x = blobs()[0].astype(np.float64)
  for call in (
    functools.partial(fit, KEY, num_clusters=4),
    functools.partial(kmeans.predict, x[:4].astype(np.float32)),
  ):
    with pytest.warns(UserWarning, match='x is float64') as caught:
      call(x)
    assert len(caught) == 1


@pytest.mark.parametrize(
  ('x', 'options', 'message'),
  [
    (np.ones((4, 3)), {}, r'it must be \[N, 1\]'),
    (LINE, {'sample_weight': np.ones(3)}, 'x has 4 rows'),
  ],
)
def test_further_points_must_fit_the_first(x, options, message):
  state = kmeans.start(KEY, LINE, num_clusters=2)
  for function in (kmeans.run, kmeans.step, kmeans.update):
    with pytest.raises(InputError, match=message):
      function(state, jnp.asarray(x, jnp.float32), **options)


@pytest.mark.parametrize('decay', [-3.0, 1.5, np.nan])
def test_a_batch_cannot_be_remembered_more_than_whole(decay):
  state = kmeans.start(KEY, LINE, num_clusters=2)
  with pytest.raises(InputError, match=r'decay is .* from 0 to 1'):
    kmeans.update(state, LINE, decay=decay)


def test_batches_of_too_few_distinct_rows_warn():
  x = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
  with pytest.warns(UserWarning, match='found 3 distinct of 5 clusters'):
    kmeans.fit_minibatch(KEY, x, num_clusters=5, batch_size=16)


def test_a_good_fit_warns_of_nothing():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    fit(KEY, LINE, num_clusters=2)


def test_centers_must_fit_the_points_to_predict():
  with pytest.raises(InputError, match='centers has shape'):
    kmeans.predict(jnp.ones((2, 3)), LINE)

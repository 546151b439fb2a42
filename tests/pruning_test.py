"""Bounds of distances change nothing: Lloyd's algorithm, pruned and plain."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_sets import blobs, same_partition, sharded

from jaxclust import inputs, kmeans
from jaxclust import rows as rows_module
from jaxclust.algorithms import pruning, runs, seeding, solver
from jaxclust.algorithms.lloyd import LLOYD, pad
from jaxclust.algorithms.pruning import PRUNED
from jaxclust.algorithms.solver import StopReason
from jaxclust.inputs import METRICS, describe, place

KEY = jax.random.key(0)

# Points, clusters and rows of a block that all tests share, so that they share
# programs; the last block falls short.
X = np.random.default_rng(1).uniform(-0.3, 0.7, (500, 3)).astype(np.float32)
NUM_CLUSTERS, BLOCK_SIZE = 12, 70


@pytest.fixture(autouse=True)
def _few_numbers_count_as_many(monkeypatch):
  monkeypatch.setattr(pruning, '_MANY', NUM_CLUSTERS)
  monkeypatch.setattr(pruning, '_PER_FAST', 3)  # four centers are fast
  for module in (rows_module, inputs):
    monkeypatch.setattr(module, 'SMALL', 0)


def rows_of(x, weight=None, metric='euclidean', block_size=BLOCK_SIZE):
  return describe(place(x, weight, block_size=block_size), metric)


def starts(rows, num_clusters=NUM_CLUSTERS):
  """Centers `[2, K, D]` at random rows, in the frame."""
  return seeding.seed(KEY, rows, num_clusters, 2, 'random').centers


def solve(algorithm, centers, rows, num_clusters=NUM_CLUSTERS, **options):
  """The runs of an algorithm, and their objectives."""
  params = pad(centers, num_clusters, NUM_CLUSTERS)
  state = solver.begin(LLOYD, params, rows)
  return go_on(algorithm, state, rows, **options)


def go_on(algorithm, state, rows, **options):
  options = {'max_steps': 40, 'tol': 0.0} | options
  return solver.run(algorithm, state, rows, **options)


def assert_same(centers, rows, **options):
  """The pruned and the plain algorithm make the same steps."""
  plain, pruned = (
    solve(algorithm, centers, rows, **options) for algorithm in (LLOYD, PRUNED)
  )
  return assert_same_steps(pruned, plain)


def assert_same_steps(pruned, plain):
  (pruned, pruned_steps), (plain, steps) = pruned, plain
  np.testing.assert_allclose(pruned_steps, steps, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(pruned.stop_reason, plain.stop_reason)
  np.testing.assert_array_equal(pruned.num_steps, plain.num_steps)
  np.testing.assert_allclose(
    pruned.stats.counts, plain.stats.counts, rtol=1e-5, atol=1e-5
  )
  chex.assert_trees_all_close(pruned.params, plain.params, atol=1e-4)
  return pruned


@pytest.mark.parametrize('share', [0, 0.3, 1])
@pytest.mark.parametrize('block_size', [1, 7, 50, 99])
def test_visits_see_every_wanted_row_once(share, block_size):
  wanted = jnp.asarray(np.random.default_rng(0).uniform(size=50) < share)
  rows = rows_of(X[:50], block_size=block_size)

  def see(seen, place, x, weight):
    mapped = rows.in_frame(rows.x[jnp.minimum(place, 49)])
    same = jnp.all(x == mapped, axis=1) | (weight == 0)
    return seen.at[place].add(jnp.where(same, weight, 9), mode='drop')

  seen = pruning._visit(see, jnp.zeros(50), rows, wanted, 0)
  np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('weighted', [False, True])
def test_bounds_change_nothing(metric, weighted):
  weight = np.random.default_rng(0).integers(0, 3, 500) if weighted else None
  rows = rows_of(X, weight, metric)
  state = assert_same(starts(rows), rows)
  assert (state.num_steps > 5).all()


def test_bounds_change_nothing_on_two_devices():
  alone, shared = rows_of(X), rows_of(sharded(X))
  centers = np.asarray(starts(alone))
  one, other = (assert_same(centers, rows) for rows in (alone, shared))
  np.testing.assert_allclose(one.objective, other.objective, rtol=1e-5)


def test_clusters_that_pad_others_stay_out_of_the_bounds():
  rows = rows_of(X)
  state = assert_same(starts(rows, 9), rows, num_clusters=9)
  assert (state.stats.counts[:, 9:] == 0).all()


def test_empty_clusters_are_relocated_alike():
  rows = rows_of(X)
  centers = np.array(starts(rows))
  centers[:, -3:] = 1e3 * np.arange(1, 4)[:, None]
  state = assert_same(centers, rows)
  assert (state.stats.counts > 0).all()


def test_close_clusters_far_apart_keep_the_digits_of_the_inertia():
  """It is not a small difference of large sums."""
  rng = np.random.default_rng(0)
  means = 1e3 * rng.normal(size=(NUM_CLUSTERS, 3))
  truth = np.arange(500) % NUM_CLUSTERS
  x = (means[truth] + rng.normal(size=(500, 3))).astype(np.float32)
  rows = rows_of(x)
  centers = rows.frame.apply(jnp.asarray(means + 3, jnp.float32))[None]
  state, _ = solve(PRUNED, centers, rows)
  means = np.stack([x[truth == k].mean(axis=0) for k in range(NUM_CLUSTERS)])
  exact = np.square(x - means[truth]).sum(dtype=np.float64)
  inertia = state.objective * jnp.square(rows.frame.scale)
  np.testing.assert_allclose(inertia, [exact], rtol=1e-3)


def test_a_nan_keeps_the_last_finite_centers():
  rows = rows_of(X)
  state, _ = solve(PRUNED, starts(rows), rows, num_steps=1)
  x = X.copy()
  x[5, 1] = np.nan
  broken = dataclasses.replace(place(x, block_size=70), frame=rows.frame)
  new, _ = go_on(PRUNED, state, broken)
  assert (new.stop_reason == StopReason.NONFINITE).all()
  chex.assert_trees_all_equal(new.params, state.params)


def test_runs_in_parts_are_a_whole_run():
  rows = rows_of(X)
  tol = 1e-9  # what rounding moves, as each call sums anew
  whole, _ = solve(PRUNED, starts(rows), rows, tol=tol)
  state, _ = solve(PRUNED, starts(rows), rows, num_steps=0)
  calls = 0
  while solver.is_running(state).any():
    state, _ = go_on(PRUNED, state, rows, num_steps=5, tol=tol)
    calls += 1
  assert calls > 1
  chex.assert_trees_all_close(state.params, whole.params, atol=1e-5)
  np.testing.assert_array_equal(state.num_steps, whole.num_steps)


@pytest.mark.slow
def test_sums_that_drift_are_made_anew(monkeypatch):
  """Here in each step, with blocks of which no other test has programs."""
  monkeypatch.setattr(pruning, '_DRIFT', -1.0)
  rows = rows_of(X)
  centers = starts(rows)
  state = solver.begin(LLOYD, pad(centers, NUM_CLUSTERS, NUM_CLUSTERS), rows)
  other = dataclasses.replace(rows, block_size=71)
  assert_same_steps(go_on(PRUNED, state, other), solve(LLOYD, centers, rows))


@pytest.mark.slow
def test_a_fit_of_large_data_is_pruned_and_ends_where_the_plain_one_does(
  monkeypatch,
):
  x, truth = blobs(num_points=140_000, num_features=8, spread=0.5)
  chosen = []
  run = solver.run

  def record(algorithm, *args, **options):
    chosen.append(algorithm)
    return run(algorithm, *args, **options)

  monkeypatch.setattr(solver, 'run', record)
  fit = functools.partial(kmeans.fit, KEY, x, num_clusters=4, num_restarts=2)
  pruned = fit()
  assert chosen == [PRUNED]
  monkeypatch.setattr(runs, 'PRUNED', LLOYD)
  plain = fit()
  assert chosen[1:] == [LLOYD]
  np.testing.assert_allclose(pruned.inertias, plain.inertias, rtol=1e-5)
  np.testing.assert_array_equal(pruned.counts, plain.counts)
  assert same_partition(kmeans.predict(pruned.centers, x), truth)

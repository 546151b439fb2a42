"""k-means as programs: which calls share one, and what transforms them."""

import functools

import chex
import jax
import numpy as np
import pytest
from point_sets import blobs, same_partition

from jaxclust import kmeans
from jaxclust.algorithms import solver
from jaxclust.algorithms.lloyd import LLOYD
from jaxclust.inputs import describe, place

KEY = jax.random.key(0)

fit = functools.partial(kmeans.fit, num_restarts=2)


def fit_and_predict(key, x, **options):
  result = kmeans.fit(key, x, **options)
  kmeans.predict(result.centers, x)
  kmeans.score(result.centers, x)


def test_a_new_tolerance_size_or_limit_within_a_bucket_compiles_nothing(
  count_programs,
):
  x, _ = blobs(num_points=384)
  jax.clear_caches()
  count = functools.partial(count_programs, fit_and_predict)
  assert count(KEY, x, num_clusters=4)
  same = {'num_clusters': 4}
  assert not count(KEY, x, **same)
  assert not count(jax.random.key(1), x, **same)
  assert not count(KEY, x, tol=1e-3, max_steps=60, **same)
  assert not count(KEY, x, tol=0, **same)
  assert not count(KEY, x, num_restarts=3, **same)
  assert not count(KEY, x[:300], **same)
  assert not count(KEY, x, num_clusters=3)
  assert not count(KEY, x, sample_weight=np.arange(384.0), **same)
  assert count(KEY, x, num_clusters=9)  # the next bucket


def test_other_batches_of_a_size_compile_nothing(count_programs):
  x, _ = blobs(num_points=384)
  jax.clear_caches()
  count = functools.partial(count_programs, kmeans.fit_minibatch)
  options = {'num_clusters': 4, 'batch_size': 32, 'num_batches': 3}
  assert count(KEY, x, **options)
  assert not count(jax.random.key(1), x, **options)
  assert not count(KEY, x, **{**options, 'num_batches': 5})
  assert not count(KEY, x, num_restarts=2, **options)


def test_a_run_is_no_program_for_each_number_of_steps(count_programs):
  x, _ = blobs(num_points=384)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
  state, _ = kmeans.run(state, x, 1)
  assert not count_programs(kmeans.run, state, x, 2)
  assert not count_programs(kmeans.run, state, x)
  kmeans.update(state, x[:64])
  assert not count_programs(kmeans.update, state, x[64:100], decay=0.5)


def test_runs_in_turn_are_runs_side_by_side():
  """A CPU makes them in turn, an accelerator side by side."""
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=3, init='random')
  in_turn, steps = kmeans.run(state, x)
  rows = describe(place(x))
  runs = state._replace(frame=())
  together, history = solver._iterate(LLOYD, runs, rows, 1e-4, 0.0, 300, 300)
  together = together._replace(frame=state.frame)
  chex.assert_trees_all_close(together, in_turn, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(history.T, steps, rtol=1e-5)
  assert len(set(in_turn.num_steps.tolist())) > 1  # they end apart


class TransformationsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_a_step_does_not_depend_on_jit(self):
    x, _ = blobs(spread=4.0)
    state = kmeans.start(KEY, x, num_clusters=8, num_restarts=2)
    run = functools.partial(kmeans.run, num_steps=1)
    moved, _ = self.variant(run)(state, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    chex.assert_tree_all_finite(moved)
    means = state.stats.sums / state.stats.counts[..., None]
    np.testing.assert_allclose(moved.params.centers, means, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_an_update_does_not_depend_on_jit(self):
    x, _ = blobs(spread=4.0)
    state = kmeans.start(KEY, x, num_clusters=8, num_restarts=2)
    moved = self.variant(kmeans.update)(state, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    means = state.stats.sums / state.stats.counts[..., None]
    np.testing.assert_allclose(moved.params.centers, means, atol=1e-5)

  @pytest.mark.slow
  def test_a_fit_under_vmap_is_a_loop_of_fits(self):
    x = np.stack([blobs(spread=4.0, seed=s)[0] for s in range(3)])
    batched = jax.jit(jax.vmap(lambda x: fit(KEY, x, num_clusters=4)))(x)
    for i in range(3):
      alone = fit(KEY, x[i], num_clusters=4)
      np.testing.assert_allclose(batched.inertia[i], alone.inertia, rtol=1e-6)
      np.testing.assert_array_equal(
        kmeans.predict(np.asarray(batched.centers)[i], x[i]),
        kmeans.predict(alone.centers, x[i]),
      )

  @pytest.mark.slow
  def test_a_fit_does_not_depend_on_jit(self):
    x, _ = blobs(spread=4.0)
    plain = fit(KEY, x, num_clusters=4)
    jitted = jax.jit(lambda x: fit(KEY, x, num_clusters=4))(x)
    np.testing.assert_allclose(jitted.inertias, plain.inertias, rtol=1e-6)
    np.testing.assert_array_equal(
      kmeans.predict(jitted.centers, x), kmeans.predict(plain.centers, x)
    )

  def test_restarts_together_are_restarts_in_a_loop(self):
    x = blobs(spread=5.0)[0]
    state = kmeans.start(KEY, x, num_clusters=4, num_restarts=7)
    starts = kmeans.centers_of_runs(state)
    state, _ = kmeans.run(state, x)
    together = kmeans.best(state)
    alone = [fit(KEY, x, num_clusters=4, init=s) for s in starts]
    runs = kmeans.centers_of_runs(state)
    for run, one in zip(runs, alone, strict=True):
      assert same_partition(
        kmeans.predict(run, x), kmeans.predict(one.centers, x)
      )
    inertias = [float(a.inertia) for a in alone]
    np.testing.assert_allclose(together.inertias, inertias, rtol=1e-6)
    best = alone[int(np.argmin(inertias))]
    assert same_partition(
      kmeans.predict(together.centers, x), kmeans.predict(best.centers, x)
    )

  def test_runs_in_parts_are_a_whole_run(self):
    x = blobs(spread=5.0)[0]
    state = kmeans.start(KEY, x, num_clusters=4, num_restarts=5, init='random')
    whole, _ = kmeans.run(state, x)
    calls = 0
    while solver.is_running(state).any():
      state, _ = kmeans.run(state, x, 3)
      calls += 1
    assert calls > 1
    chex.assert_trees_all_close(state, whole, rtol=1e-6, atol=1e-6)

"""k-means on mini-batches: those of `fit_minibatch`, and the caller's own."""

import functools

import chex
import jax
import numpy as np
import pytest
from point_sets import blobs

from jaxclust import kmeans
from jaxclust.algorithms import minibatches, seeding
from jaxclust.algorithms.solver import StopReason
from jaxclust.errors import InputError
from jaxclust.inputs import METRICS

KEY = jax.random.key(0)

LINE = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)

fit = functools.partial(kmeans.fit_minibatch, KEY, num_clusters=4)


# A whole fit


@pytest.mark.slow
@pytest.mark.parametrize('metric', METRICS)
def test_it_ends_near_the_inertia_of_all_points(metric):
  x, _ = blobs(spread=2.0)
  options = {'num_clusters': 4, 'metric': metric}
  whole = kmeans.fit(KEY, x, **options)
  parts = kmeans.fit_minibatch(KEY, x, batch_size=32, **options)
  assert whole.inertia * 0.999 < parts.inertia < whole.inertia * 1.05
  chex.assert_shape(parts.inertias, (3,))
  assert parts.counts.sum() == len(x)
  assert parts.num_steps == 100
  assert parts.stop_reason == StopReason.MAX_STEPS


@pytest.mark.parametrize(
  'batch_size', [32, pytest.param(105, marks=pytest.mark.slow)]
)
def test_padding_does_not_change_a_fit_on_batches(batch_size):
  """Starts are from a sample of 96 rows, or from all but the padding."""
  x, _ = blobs(spread=4.0)
  padding = np.concatenate([x[:20], np.full((20, 5), 1e3, np.float32)])
  padded = np.concatenate([padding, x])
  weight = np.concatenate([np.zeros(40), np.ones(len(x))])
  plain = fit(x, batch_size=batch_size)
  result = fit(padded, batch_size=batch_size, sample_weight=weight)
  np.testing.assert_allclose(result.centers, plain.centers, atol=1e-4)
  np.testing.assert_allclose(result.inertias, plain.inertias, rtol=1e-5)


def test_a_cluster_that_starts_empty_takes_points_of_batches():
  x, _ = blobs(spread=4.0)
  start = np.concatenate([x[:3], np.full((1, 5), 1e3, np.float32)])
  result = fit(x, init=start, batch_size=32)
  labels = kmeans.predict(result.centers, x)
  np.testing.assert_array_equal(np.bincount(labels), result.counts)
  assert (result.counts > 0).all()


def test_batches_of_too_few_distinct_rows_warn():
  x = np.repeat(np.eye(5, dtype=np.float32)[:3], 100, axis=0)
  with pytest.warns(UserWarning, match='found 3 distinct of 4 clusters'):
    fit(x, batch_size=32)


def test_sample_starts_and_batches_are_drawn_with_keys_of_their_own(
  monkeypatch,
):
  keys = []

  def record(module, name, place):
    plain = getattr(module, name)

    def recording(*args):
      keys.append(args[place])
      return plain(*args)

    monkeypatch.setattr(module, name, recording)

  record(seeding, 'sample', 0)
  record(seeding, 'seed', 0)
  record(minibatches, 'run', 0)
  fit(blobs()[0], batch_size=32)
  assert len(keys) == 3
  numbers = {tuple(jax.random.key_data(key).tolist()) for key in (KEY, *keys)}
  assert len(numbers) == 4


def test_batches_depend_on_the_key_beside_the_starts():
  x, _ = blobs(spread=4.0)
  one, other = (
    kmeans.fit_minibatch(
      key, x, num_clusters=4, init=x[:4], batch_size=32, num_batches=3
    )
    for key in (KEY, jax.random.key(1))
  )
  assert np.abs(one.centers - other.centers).max() > 1e-3


# The caller's batches


def test_the_best_after_an_update_knows_the_last_batch():
  state = kmeans.start(KEY, LINE[:2], num_clusters=1, num_restarts=1)
  result = kmeans.best(kmeans.update(state, LINE[3:]))
  np.testing.assert_allclose(result.centers, [[(0 + 1 + 11) / 3]], rtol=1e-6)
  np.testing.assert_array_equal(result.counts, [3])


def test_a_batch_of_all_points_is_a_step():
  x, _ = blobs(spread=4.0)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
  one_step, _ = kmeans.run(state, x, 1)
  batch = kmeans.update(state, x, decay=0.0)
  chex.assert_trees_all_close(batch.params, one_step.params, rtol=1e-4)
  chex.assert_trees_all_close(batch.stats, state.stats, rtol=1e-4, atol=1e-3)
  np.testing.assert_array_equal(batch.num_steps, one_step.num_steps)


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_the_objective_of_an_update_is_the_inertia_of_its_batch(decay):
  """Before the update."""
  x = np.random.default_rng(0).normal(size=(3, 300, 5)).astype(np.float32)
  state = kmeans.start(KEY, x[0], num_clusters=3, num_restarts=2)
  for batch in x[1:]:
    before = kmeans.centers_of_runs(state)
    state = kmeans.update(state, batch, decay=decay)
    inertias = state.objective * np.square(state.frame.scale)
    exact = [-kmeans.score(centers, batch) for centers in before]
    np.testing.assert_allclose(inertias, exact, rtol=1e-4)


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_batches_are_remembered_as_decay_says(decay):
  x, labels = blobs(num_points=600, spread=0.1)
  state = kmeans.start(KEY, x[:300], num_clusters=4, num_restarts=1)
  result = kmeans.best(kmeans.update(state, x[300:], decay=decay))
  weight = np.where(np.arange(len(x)) < 300, decay, 1.0)
  members = np.eye(4)[labels] * weight[:, None]
  means = members.T @ x / members.sum(axis=0)[:, None]
  same = np.square(means[:, None] - result.centers[None]).sum(-1).argmin(1)
  assert len(set(same)) == 4
  np.testing.assert_allclose(result.counts[same], members.sum(axis=0))
  np.testing.assert_allclose(result.centers[same], means, atol=1e-4)


def test_a_batch_of_nan_is_left_out_and_the_next_one_runs_again():
  x, _ = blobs()
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2)
  broken = kmeans.update(state, np.full_like(x, np.nan))
  assert (broken.stop_reason == StopReason.NONFINITE).all()
  chex.assert_trees_all_equal(
    broken._replace(stop_reason=state.stop_reason), state
  )
  again = kmeans.update(broken, x)
  assert (again.stop_reason == StopReason.RUNNING).all()
  chex.assert_trees_all_equal(again, kmeans.update(state, x))


# Input that cannot be used


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


@pytest.mark.parametrize('decay', [-3.0, 1.5, np.nan])
def test_a_batch_cannot_be_remembered_more_than_whole(decay):
  state = kmeans.start(KEY, LINE, num_clusters=2)
  with pytest.raises(InputError, match=r'decay is .* from 0 to 1'):
    kmeans.update(state, LINE, decay=decay)

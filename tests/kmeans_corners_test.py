"""k-means: corners, and input that cannot be used."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_sets import blobs, same_partition

from jaxclust import kmeans
from jaxclust.algorithms.seeding import SEEDINGS
from jaxclust.algorithms.solver import StopReason
from jaxclust.errors import InputError

KEY = jax.random.key(0)

LINE = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)

# Three points, and one that no center starts near.
FAR = np.array([[0.0], [1.0], [2.0], [50.0]], np.float32)

UNIFORM = np.random.default_rng(0).uniform(size=(300, 5)).astype(np.float32)

fit = functools.partial(kmeans.fit, num_restarts=2)


def test_as_many_clusters_as_points_have_no_inertia():
  assert fit(KEY, LINE, num_clusters=4).inertia == 0


@pytest.mark.parametrize('init', SEEDINGS)
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


@pytest.mark.parametrize('init', SEEDINGS)
def test_equal_rows_are_one_distinct_cluster(init):
  x = np.full((300, 5), 5.5, np.float32)
  with pytest.warns(UserWarning, match='1 distinct of 4'):
    result = fit(KEY, x, num_clusters=4, init=init)
  assert result.inertia == 0
  assert result.num_steps <= 2
  chex.assert_tree_all_finite(result)


@pytest.mark.parametrize('init', SEEDINGS)
def test_too_few_distinct_rows_give_that_many_labels(init):
  x = np.repeat(np.random.default_rng(0).normal(size=(3, 5)), 100, axis=0)
  x = x.astype(np.float32)
  with pytest.warns(UserWarning, match='3 distinct of 4'):
    result = fit(KEY, x, num_clusters=4, init=init, tol=0.0)
  assert len(np.unique(kmeans.predict(result.centers, x))) == 3
  assert result.converged


def test_a_constant_feature_changes_nothing():
  x, _ = blobs(spread=3.0)
  wider = np.concatenate([x, np.full((len(x), 1), 4.0, np.float32)], axis=1)
  plain = fit(KEY, x, num_clusters=4, init=x[:4])
  result = fit(KEY, wider, num_clusters=4, init=wider[:4])
  np.testing.assert_allclose(result.centers[:, :-1], plain.centers, atol=1e-5)


def test_an_empty_cluster_takes_the_farthest_point():
  start = np.array([[1.0], [-1000.0]])
  result = fit(KEY, FAR, num_clusters=2, init=start)
  np.testing.assert_allclose(result.centers[:, 0], [1, 50], atol=1e-5)
  np.testing.assert_array_equal(result.counts, [3, 1])
  labels = kmeans.predict(result.centers, FAR)
  np.testing.assert_array_equal(labels, [0, 0, 0, 1])


def test_no_tolerance_is_so_large_that_a_cluster_stays_empty():
  start = np.array([[1.0], [-1000.0]])
  result = fit(KEY, FAR, num_clusters=2, init=start, tol=1e9)
  assert result.converged
  np.testing.assert_array_equal(result.counts, [3, 1])


@pytest.mark.parametrize('num_steps', [1, 5])
def test_relocated_clusters_hold_the_points_that_are_nearest(num_steps):
  x, _ = blobs(spread=4.0)
  far = np.full((3, 5), 1e3, np.float32) * np.arange(1, 4)[:, None]
  start = np.concatenate([x[:1], far.astype(np.float32)])
  state = kmeans.start(KEY, x, num_clusters=4, init=start)
  assert (np.asarray(state.stats.counts)[:, :4] == 0).sum() == 3
  for _ in range(5 // num_steps):
    state, _ = kmeans.run(state, x, num_steps, tol=0.0)
    labels = kmeans.predict(kmeans.centers_of_runs(state)[0], x)
    sums, counts = (np.asarray(a)[0, :4] for a in state.stats[:2])
    np.testing.assert_array_equal(np.bincount(labels), counts)
    exact = np.eye(4)[labels].T @ np.asarray(state.frame.apply(jnp.asarray(x)))
    np.testing.assert_allclose(sums, exact, atol=1e-3)
  assert (counts > 0).all()


def test_equal_initial_centers_part():
  x, _ = blobs(num_clusters=2)
  result = fit(KEY, x, num_clusters=2, init=np.stack([x[0], x[0]]))
  assert (result.counts > 0).all()


def test_running_out_of_steps_warns():
  with pytest.warns(UserWarning, match='did not converge in 1 steps'):
    result = fit(KEY, UNIFORM, num_clusters=4, max_steps=1)
  assert not result.converged
  assert result.stop_reason == StopReason.MAX_STEPS


def test_no_tolerance_still_ends():
  result = fit(KEY, UNIFORM, num_clusters=4, tol=0.0, max_steps=1000)
  assert result.converged


def test_nan_that_cannot_be_seen_is_never_converged():
  jitted = jax.jit(lambda x: fit(KEY, x, num_clusters=2, init=LINE[:2]))
  x = LINE.copy()
  x[0, 0] = np.nan
  result = jitted(x)
  assert result.stop_reason == StopReason.NONFINITE
  assert result.num_steps == 0
  assert not result.converged


def test_an_inertia_that_turns_nan_keeps_the_last_centers():
  x, _ = blobs(spread=5.0)
  state = kmeans.start(KEY, x, num_clusters=4, num_restarts=2, init='random')
  state, _ = kmeans.run(state, x, 1)
  assert (state.stop_reason == StopReason.RUNNING).all()
  x[5, 1] = np.nan
  broken, _ = kmeans.run(state, x, 3)
  assert (broken.stop_reason == StopReason.NONFINITE).all()
  chex.assert_trees_all_equal(broken.params, state.params)
  result = kmeans.best(broken)
  assert not result.converged
  with pytest.warns(UserWarning, match='the inertia is not finite'):
    kmeans.warn(result)


@pytest.mark.parametrize('place', [1e5, 1e8])
def test_an_outlier_is_a_cluster_and_blurs_no_other(place):
  x, truth = blobs(num_clusters=3, spread=0.5)
  x[7] = place
  result = fit(KEY, x, num_clusters=4)
  labels = np.asarray(kmeans.predict(result.centers, x))
  np.testing.assert_array_equal(np.bincount(labels), result.counts)
  others = np.arange(len(x)) != 7
  assert same_partition(labels[others], truth[others])


@pytest.mark.parametrize('gap', [1e3, 1e4, 1e5])
def test_clusters_far_from_the_mean_keep_their_distances(gap):
  rng = np.random.default_rng(0)
  means = np.pad([[0], [10], [gap], [gap + 10]], ((0, 0), (0, 4)))
  truth = rng.integers(0, 4, size=300)
  x = (means[truth] + rng.normal(size=(300, 5))).astype(np.float32)
  result = fit(KEY, x, num_clusters=4)
  centers = np.stack([x[truth == k].mean(axis=0) for k in range(4)])
  inertia = np.square(x.astype(np.float64) - centers[truth]).sum()
  np.testing.assert_allclose(result.inertia, inertia, rtol=1e-3)
  assert same_partition(kmeans.predict(result.centers, x), truth)


@pytest.mark.parametrize('init', SEEDINGS)
def test_rows_without_weight_are_no_seeds(init):
  x = np.arange(8, dtype=np.float32)[:, None]
  weight = np.array([0.0, 1, 0, 1, 0, 0, 1, 0])
  state = kmeans.start(KEY, x, num_clusters=3, init=init, sample_weight=weight)
  for run in kmeans.centers_of_runs(state):
    np.testing.assert_allclose(np.sort(run[:, 0]), [1, 3, 6], atol=1e-5)
  with pytest.raises(InputError, match='only 3 rows have a positive weight'):
    fit(KEY, x, num_clusters=4, sample_weight=weight)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.uint8])
def test_narrow_data_are_summed_in_float32(dtype):
  x = np.random.default_rng(0).integers(0, 200, (300, 5)).astype(dtype)
  result = fit(KEY, x, num_clusters=3, init=x[:3])
  wide = x.astype(np.float32)
  reference = fit(KEY, wide, num_clusters=3, init=wide[:3])
  assert result.centers.dtype == jnp.float32
  np.testing.assert_allclose(result.inertia, reference.inertia, rtol=1e-5)


# Input that cannot be used


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
    ({'num_clusters': 2, 'metric': 'manhattan'}, "metric is 'manhattan'"),
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


def line_with(row, value):
  x = LINE.copy()
  x[row] = value
  return x


@pytest.mark.parametrize(
  ('x', 'weight', 'message'),
  [
    (
      line_with(2, np.nan),
      None,
      r'1 values .* NaN .* \(nan\) at row 2, column 0: remove those rows',
    ),
    (line_with(3, -np.inf), None, r'\(-inf\) at row 3, column 0'),
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
  if weight is None or np.any(weight):  # the score of nothing is 0
    calls.append(lambda x: kmeans.score(LINE[:2], x, weight))
  if weight is None:
    calls.append(functools.partial(kmeans.predict, LINE[:2]))
    calls.append(functools.partial(kmeans.transform, LINE[:2]))
  for call in calls:
    with pytest.raises(InputError, match=message) as caught:
      call(x)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'function', [kmeans.predict, kmeans.transform, kmeans.score]
)
def test_centers_and_metrics_must_fit_the_points_to_predict(function):
  with pytest.raises(InputError, match='centers has shape'):
    function(np.ones((2, 3)), LINE)
  with pytest.raises(InputError, match="metric is 'manhattan'"):
    function(LINE[:2], LINE, metric='manhattan')


@pytest.mark.parametrize('weight', [None, np.ones(3)])
def test_further_points_must_fit_the_first(weight):
  state = kmeans.start(KEY, LINE, num_clusters=2)
  x = np.ones((4, 3), np.float32) if weight is None else LINE
  message = r'it must be \[N, 1\]' if weight is None else 'x has 4 rows'
  for function in (kmeans.run, kmeans.update):
    with pytest.raises(InputError, match=message):
      function(state, x, sample_weight=weight)


# Warnings


def test_float64_is_cast_once_with_one_warning():
  x = blobs()[0].astype(np.float64)
  for call in (
    functools.partial(fit, KEY, num_clusters=4),
    functools.partial(kmeans.predict, x[:4].astype(np.float32)),
  ):
    with pytest.warns(UserWarning, match='x is float64') as caught:
      call(x)
    assert len(caught) == 1


def test_warnings_name_the_line_of_the_caller():
  equal_rows = np.ones((20, 1), np.float32)
  for call in (
    lambda: kmeans.fit(KEY, LINE.astype(np.float64), num_clusters=2),
    lambda: kmeans.fit(KEY, equal_rows, num_clusters=2),
    lambda: kmeans.fit_minibatch(KEY, equal_rows, num_clusters=2),
    lambda: kmeans.predict(LINE[:2], LINE.astype(np.float64)),
    lambda: kmeans.score(LINE[:2], LINE.astype(np.float64)),
  ):
    with pytest.warns(UserWarning, match='cast|distinct') as caught:
      call()
    assert [w.filename for w in caught] == [__file__]


def test_a_good_fit_warns_of_nothing():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    fit(KEY, LINE, num_clusters=2)

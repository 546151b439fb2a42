"""Gaussian mixtures at the corners of their data, weights and options."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import FAMILIES, KEY, clusters, fit_from_rows, params_of

from jaxclust import gmm
from jaxclust.algorithms.solver import StopReason
from jaxclust.errors import InputError


def broken_params(factor):
  params = params_of('full', num_features=3)
  return params._replace(scale_tril=factor * params.scale_tril)


def with_a_constant_feature():
  x, _ = clusters(num_features=2)
  return np.concatenate([x, np.full((len(x), 1), 4.0, np.float32)], axis=1)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_constant_feature_leaves_everything_finite(covariance):
  x = with_a_constant_feature()
  result = gmm.fit(KEY, x, num_components=3, covariance=covariance)
  chex.assert_tree_all_finite(result)
  assert result.num_repaired == 0


@pytest.mark.parametrize('covariance', ['full', 'tied', 'diag'])
def test_without_a_ridge_a_singular_covariance_is_repaired(covariance):
  x = with_a_constant_feature()
  with pytest.warns(UserWarning, match='singular'):
    result = gmm.fit(KEY, x, num_components=3, covariance=covariance, reg=0.0)
  chex.assert_tree_all_finite(result)
  assert result.num_repaired == (1 if covariance == 'tied' else 3)


@pytest.mark.parametrize(
  ('weight', 'reg', 'messages'),
  [
    (1.0, 1e-6, ['3 of 3 covariances are rank-deficient']),
    (100.0, 1e-6, ['3 of 3 covariances are rank-deficient']),
    (1.0, 0.0, ['3 of 3 covariances are rank-deficient', '3 .* were singular']),
  ],
)
def test_more_features_than_points_warn_of_a_deficient_rank(
  weight, reg, messages
):
  """Three pairs of points, beside rows without weight."""
  x, _ = clusters()
  x[:6] += np.repeat([0, 1000, 2000], 2)[:, None]
  weight = np.where(np.arange(len(x)) < 6, weight, 0)
  with contextlib.ExitStack() as stack:
    for message in messages:
      stack.enter_context(pytest.warns(UserWarning, match=message))
    result = gmm.fit(KEY, x, num_components=3, reg=reg, sample_weight=weight)
  chex.assert_tree_all_finite(result)


def test_small_weights_are_not_few_points():
  x, _ = clusters()
  light = gmm.fit(KEY, x, num_components=3, sample_weight=np.full(len(x), 0.01))
  plain = gmm.fit(KEY, x, num_components=3)
  np.testing.assert_allclose(
    light.log_likelihood, plain.log_likelihood, rtol=1e-5
  )


@pytest.mark.parametrize('covariance', FAMILIES)
@pytest.mark.filterwarnings('ignore:.*rank-deficient', 'ignore:.*lost all')
def test_an_outlier_leaves_everything_finite(covariance):
  x, _ = clusters()
  x[7] = 1e8
  result = gmm.fit(KEY, x, num_components=3, covariance=covariance)
  chex.assert_tree_all_finite(result)


@pytest.mark.filterwarnings('ignore:.*rank-deficient')
@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_component_that_loses_its_points_is_reported(covariance):
  x, _ = clusters()
  start = np.stack([x[0], x[1], np.full(3, 1e6, np.float32)])
  with pytest.warns(UserWarning, match='1 of 3 components have lost'):
    result = gmm.fit(
      KEY, x, num_components=3, init=start, covariance=covariance
    )
  chex.assert_tree_all_finite(result)
  assert result.counts[2] == 0
  assert result.converged


@pytest.mark.filterwarnings('ignore:.*rank-deficient')
@pytest.mark.parametrize('covariance', FAMILIES)
def test_equal_rows_are_one_component(covariance):
  x = np.full((400, 3), 3.0, np.float32)
  with pytest.warns(UserWarning, match='2 of 3 components have lost all'):
    result = gmm.fit(KEY, x, num_components=3, covariance=covariance)
  chex.assert_tree_all_finite(result)
  np.testing.assert_allclose(result.params.means[0], np.full(3, 3), rtol=1e-5)
  assert result.num_steps <= 2


@pytest.mark.filterwarnings('ignore:.*rank-deficient')
@pytest.mark.parametrize('covariance', FAMILIES)
def test_too_few_distinct_rows_give_that_many_labels(covariance):
  x = np.repeat(np.random.default_rng(0).normal(size=(2, 3)), 200, axis=0)
  x = x.astype(np.float32)
  with pytest.warns(UserWarning, match='2 of 4 components have lost all'):
    result = gmm.fit(KEY, x, num_components=4, covariance=covariance, tol=0.0)
  assert len(np.unique(gmm.predict(result.params, x))) == 2
  assert result.converged


@pytest.mark.parametrize('init', ['random', 'k-means++'])
def test_components_that_are_one_are_told_of(init):
  x = np.full((400, 3), 3.0, np.float32)
  with pytest.warns(UserWarning, match='EM found 1 distinct of 4 components'):
    gmm.fit(KEY, x, num_components=4, covariance='diag', init=init)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_equal_initial_means_leave_no_component_empty(covariance):
  x, _ = clusters()
  start = np.stack([x[0], x[0]])
  with pytest.warns(UserWarning, match='1 distinct of 2 components'):
    result = gmm.fit(
      KEY, x, num_components=2, init=start, covariance=covariance
    )
  assert (result.counts > 0).all()


def test_one_point_is_a_component_of_a_deficient_rank():
  with pytest.warns(UserWarning, match='1 of 1 covariances are rank-deficient'):
    result = gmm.fit(KEY, np.float32([[3, 5]]), num_components=1, init='random')
  np.testing.assert_array_equal(result.params.means, [[3, 5]])
  chex.assert_tree_all_finite(result)


def test_running_out_of_steps_warns():
  x, _ = clusters(num_clusters=5, apart=1.0)
  with pytest.warns(UserWarning, match='EM did not converge in 2 steps: raise'):
    result = gmm.fit(KEY, x, num_components=4, init=x[:4], max_steps=2)
  assert not result.converged
  assert result.stop_reason == StopReason.MAX_STEPS


@pytest.mark.parametrize('covariance', FAMILIES)
def test_no_tolerance_still_ends(covariance):
  x, _ = clusters(num_clusters=5, apart=1.0)
  fit = functools.partial(gmm.fit, KEY, num_components=4, init=x[:4])
  result = fit(x, covariance=covariance, tol=0.0, max_steps=2000)
  assert result.converged


def test_nan_that_cannot_be_seen_is_never_converged():
  x, _ = clusters()
  x[5, 1] = np.nan
  result = jax.jit(fit_from_rows)(x)
  assert result.stop_reason == StopReason.NONFINITE
  assert not result.converged


def test_a_likelihood_that_turns_nan_keeps_the_last_parameters():
  x, _ = clusters()
  state = gmm.start(KEY, x, num_components=3)
  state, _ = gmm.run(state, x, 2, tol=0.0)
  x[5, 1] = np.nan
  broken, _ = gmm.run(state, x, 3, tol=0.0)
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.params, state.params)
  result = gmm.best(broken)
  assert not result.converged
  with pytest.warns(UserWarning, match='the likelihood is not finite'):
    gmm.warn(result)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.uint8])
def test_narrow_data_are_summed_in_float32(dtype):
  x = np.random.default_rng(0).integers(0, 200, (400, 3)).astype(dtype)
  fit = functools.partial(gmm.fit, KEY, num_components=3, covariance='diag')
  wide = x.astype(np.float32)
  result, reference = fit(x, init=x[:3]), fit(wide, init=wide[:3])
  assert result.params.means.dtype == jnp.float32
  chex.assert_trees_all_close(result, reference, rtol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'num_components': 5000},
      'num_components is 5000, but x has only 400 rows: ask for at most',
    ),
    *(
      ({'num_components': k}, f'num_components is {k!r}: .* of at least 1')
      for k in (0, -1, 2.5, 'ten')
    ),
    ({'num_components': 2, 'covariance': 'fll'}, "covariance is 'fll'"),
    ({'num_components': 2, 'init': 'best'}, "init is 'best'"),
    (
      {'num_components': 2, 'init': np.ones((2, 7))},
      r'init has shape \(2, 7\): it must end in \[2, 3\]',
    ),
    (
      {'num_components': 2, 'init': np.full((2, 3), np.nan)},
      'init has values that are NaN or infinite: give others',
    ),
    ({'num_components': 2, 'reg': -1.0}, 'reg is -1'),
    ({'num_components': 2, 'tol': np.nan}, 'tol is nan'),
    ({'num_components': 2, 'init': params_of('full')}, 'init has the shapes'),
    ({'num_components': 3, 'init': broken_params(-1)}, 'scales that are not'),
    (
      {'num_components': 3, 'init': broken_params(np.nan)},
      'init has values that are not finite.*: give the parameters of another',
    ),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  with pytest.raises(InputError, match=message) as caught:
    gmm.fit(KEY, clusters()[0], **options)
  assert '\n' not in str(caught.value)


POINTS = jnp.array([[0.0, 1.0], [2.0, 3.0], [10.0, 1.0], [11.0, 0.0]])


@pytest.mark.parametrize(
  ('x', 'weight', 'message'),
  [
    (
      POINTS.at[2, 1].set(np.nan),
      None,
      r'1 values .* NaN .* \(nan\) at row 2, column 1: remove those rows',
    ),
    (POINTS.at[3, 0].set(np.inf), None, r'\(inf\) at row 3, column 0'),
    (POINTS[:0], None, r'x has shape \(0, 2\): it must be \[N, D\]'),
    (POINTS * 1e19, None, r'x reaches 1.1e\+20: beyond .* divide x by'),
    (POINTS, np.zeros(4), 'sample_weight sums to 0: at least one weight must'),
    (POINTS, [1, 1, -1, 1], r'sample_weight\[2\] is -1.*at least 0'),
    (POINTS, [1, np.nan, 1, 1], r'sample_weight\[1\] is nan.*must be finite'),
    (POINTS, np.ones(3), r'sample_weight has shape \(3,\): x has 4 rows'),
    (POINTS, [0, 0, 2, 0], 'is 2, but only 1 rows have a positive weight: ask'),
  ],
)
def test_points_and_weights_that_cannot_be_used_are_named(x, weight, message):
  params = params_of('full')
  calls = [
    functools.partial(function, KEY, num_components=2, sample_weight=weight)
    for function in (gmm.fit, gmm.start)
  ]
  if 'rows have a positive weight' not in message:
    calls.append(lambda x: gmm.bic(params, x, weight))
    calls.append(lambda x: gmm.aic(params, x, weight))
  if weight is None:
    calls.append(functools.partial(gmm.predict, params))
    calls.append(functools.partial(gmm.log_prob, params))
    calls.append(functools.partial(gmm.responsibilities, params))
    calls.append(functools.partial(gmm.outlier_score, params))
  for call in calls:
    with pytest.raises(InputError, match=message) as caught:
      call(x)
    assert '\n' not in str(caught.value)


def test_float64_is_cast_once_with_one_warning():
  x = clusters()[0].astype(np.float64)
  params = params_of('full', num_features=3)
  for call in (
    functools.partial(gmm.fit, KEY, num_components=3),
    functools.partial(gmm.predict, params),
    functools.partial(gmm.bic, params),
  ):
    with pytest.warns(UserWarning, match='x is float64') as caught:
      call(x)
    assert len(caught) == 1

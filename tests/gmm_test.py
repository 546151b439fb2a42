"""Gaussian mixtures: worked examples, independent references and laws."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.mixture
from mixtures import (
  FAMILIES,
  KEY,
  clusters,
  covariances,
  fit_from_rows,
  params_of,
  params_of_runs,
)
from point_sets import same_partition
from sklearn.metrics import adjusted_rand_score

from jaxclust import gmm, rows
from jaxclust.algorithms.products import PRODUCTS

# Worked examples


def padded(x):
  """Few points, beside so many of weight zero that the shape is that of the
  other tests."""
  weight = np.arange(400) < len(x)
  x = np.pad(x, ((0, 400 - len(x)), (0, 0))).astype(np.float32)
  return {'key': KEY, 'x': x, 'sample_weight': weight}


def test_one_component_is_the_normal_of_the_data():
  corners = np.array(list(itertools.product((0, 2), (0, 4), (0, 6))))
  result = gmm.fit(**padded(corners), num_components=1, reg=0.0)
  np.testing.assert_allclose(result.params.means, [[1, 2, 3]], atol=1e-6)
  np.testing.assert_allclose(
    result.params.scale_tril[0], np.diag([1, 2, 3]), atol=1e-6
  )
  # log det = log 36, and a mean squared distance of D = 3.
  expected = -1.5 * np.log(2 * np.pi) - 0.5 * np.log(36) - 1.5
  np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-6)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_one_component_has_the_likelihood_of_its_closed_form(covariance):
  x, _ = clusters()
  x64 = x.astype(np.float64)
  cov = np.cov(x64.T, bias=True)
  if covariance == 'diag':
    cov = np.diag(np.diag(cov))
  if covariance == 'spherical':
    cov = np.eye(3) * np.trace(cov) / 3
  normal = scipy.stats.multivariate_normal(x64.mean(axis=0), cov)
  result = gmm.fit(KEY, x, num_components=1, covariance=covariance, reg=0.0)
  np.testing.assert_allclose(
    result.log_likelihood, normal.logpdf(x64).mean(), rtol=1e-5
  )


def test_two_far_pairs_share_the_weight():
  x = np.repeat([[-101], [-99], [99], [101]], 3, axis=1)
  result = gmm.fit(
    **padded(x), num_components=2, covariance='spherical', reg=0.0
  )
  for means in np.sort(result.params.means, axis=0).T:
    np.testing.assert_allclose(means, [-100, 100])
  np.testing.assert_allclose(result.params.scale_tril, [[1], [1]], rtol=1e-3)
  np.testing.assert_allclose(np.exp(result.params.log_weights), [0.5, 0.5])


# Independent references


@pytest.mark.parametrize('covariance', FAMILIES)
def test_steps_of_em_are_scikit_learns_from_the_same_start(covariance):
  x, _ = clusters(apart=2.0)
  start = params_of(covariance, num_features=3, seed=2)
  precision = {
    'full': np.linalg.inv,
    'tied': lambda c: np.linalg.inv(c[0]),
    'diag': lambda c: 1 / np.diagonal(c, axis1=1, axis2=2),
    'spherical': lambda c: 1 / c[:, 0, 0],
  }[covariance](covariances(start))
  weights = np.exp(np.asarray(start.log_weights, np.float64))
  peer = sklearn.mixture.GaussianMixture(
    3,
    covariance_type=covariance,
    weights_init=weights / weights.sum(),
    means_init=start.means,
    precisions_init=precision,
    reg_covar=0,
    max_iter=5,
    tol=0,
  )
  with pytest.warns(sklearn.exceptions.ConvergenceWarning):
    peer.fit(x.astype(np.float64))
  with pytest.warns(UserWarning, match='did not converge in 5 steps'):
    ours = gmm.fit(
      KEY,
      x,
      num_components=3,
      covariance=covariance,
      init=start,
      reg=0.0,
      tol=0.0,
      max_steps=5,
    )
  weights = np.exp(ours.params.log_weights)
  np.testing.assert_allclose(weights, peer.weights_, rtol=1e-4)
  np.testing.assert_allclose(
    ours.params.means, peer.means_, rtol=1e-3, atol=1e-3
  )
  theirs = {
    'full': lambda c: c,
    'tied': lambda c: np.broadcast_to(c, (3, 3, 3)),
    'diag': lambda c: np.stack([np.diag(d) for d in c]),
    'spherical': lambda c: np.stack([d * np.eye(3) for d in c]),
  }[covariance](peer.covariances_)
  np.testing.assert_allclose(
    covariances(ours.params), theirs, rtol=1e-3, atol=1e-3
  )
  np.testing.assert_allclose(ours.log_likelihood, peer.score(x), rtol=1e-4)
  np.testing.assert_allclose(gmm.bic(ours.params, x), peer.bic(x), rtol=1e-4)
  np.testing.assert_allclose(gmm.aic(ours.params, x), peer.aic(x), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_any_real_numbers_can_be_fitted_where_float64_is_enabled(dtype):
  x = clusters()[0].astype(dtype)
  with jax.enable_x64(True):
    for init in ('k-means', 'random'):
      result = gmm.fit(KEY, x, num_components=2, init=init, covariance='diag')
      again = gmm.fit(
        KEY, x, num_components=2, init=result.params, covariance='diag'
      )
      wide = jnp.float64 if dtype == 'float64' else jnp.float32
      assert again.params.means.dtype == wide
      assert gmm.predict(again.params, x).dtype == jnp.int32


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_float32_agrees_with_float64(covariance):
  x, _ = clusters()
  options = {'num_components': 3, 'covariance': covariance}
  single = gmm.fit(KEY, x, init=x[:3], **options)
  with jax.enable_x64(True):
    wide = x.astype(np.float64)
    double = gmm.fit(KEY, wide, init=wide[:3], **options)
    assert double.log_likelihood.dtype == jnp.float64
    labels = gmm.predict(double.params, wide)
  np.testing.assert_allclose(
    single.log_likelihood, double.log_likelihood, rtol=1e-4
  )
  chex.assert_trees_all_close(
    single.params, jax.tree.map(np.float32, double.params), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(gmm.predict(single.params, x), labels)


@pytest.mark.parametrize(
  ('covariance', 'small'),
  [*((f, rows.SMALL) for f in FAMILIES), *((f, 0) for f in PRODUCTS)],
)
def test_moments_keep_their_digits_far_from_the_frame(
  covariance, small, monkeypatch
):
  """Components 3,000 standard deviations apart, in float32.

  Where no data count as small, the E-step may be by products.
  """
  monkeypatch.setattr(rows, 'SMALL', small)
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1], 200)
  x = rng.normal(size=(400, 3)) + 3000 * labels[:, None]
  x = x.astype(np.float32)
  result = gmm.fit(KEY, x, num_components=2, covariance=covariance, reg=0.0)
  exact = np.stack([np.cov(x[labels == k].T, bias=True) for k in (0, 1)])
  if covariance == 'tied':
    exact = np.broadcast_to(exact.mean(axis=0), exact.shape)
  order = np.argsort(result.params.means[:, 0])
  found = covariances(result.params)[order]
  for k in (0, 1):
    variance = np.diag(exact[k])
    if covariance == 'spherical':
      variance = np.full(3, variance.mean())
    np.testing.assert_allclose(np.diag(found[k]), variance, rtol=2e-3)


# Laws


@pytest.mark.parametrize('covariance', FAMILIES)
def test_the_likelihood_never_falls(covariance):
  x, _ = clusters(num_clusters=5, apart=1.0)
  state = gmm.start(
    KEY, x, num_components=4, covariance=covariance, init='random', reg=0.0
  )
  _, history = gmm.run(state, x, 30, tol=-1.0, reg=0.0)
  history = np.concatenate([state.objective[None], history])
  assert (np.diff(history, axis=0) <= 1e-5).all()
  assert history[30] < history[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
@pytest.mark.parametrize(
  ('offset', 'scale'), [(1e4, 1.0), (1e5, 1.0), (0, 1e6), (0, 1e-6)]
)
def test_offset_and_scale_only_shift_the_likelihood(covariance, offset, scale):
  x, _ = clusters()
  moved = (x + np.float32(offset)) * np.float32(scale)
  plain = moved / np.float32(scale) - np.float32(offset)
  fits = [
    gmm.fit(KEY, a, num_components=3, covariance=covariance)
    for a in (plain, moved)
  ]
  shift = x.shape[1] * np.log(scale)
  np.testing.assert_allclose(
    fits[1].log_likelihood, fits[0].log_likelihood - shift, atol=2e-3
  )
  labels = [
    gmm.predict(f.params, a) for f, a in zip(fits, (plain, moved), strict=True)
  ]
  assert adjusted_rand_score(*labels) > 0.999


def test_permuted_rows_give_the_same_labels():
  """From given starts: draws depend on the order of the rows."""
  x, _ = clusters()
  fit = functools.partial(gmm.fit, KEY, num_components=3, init=x[:3])
  labels = np.asarray(gmm.predict(fit(x).params, x))
  order = np.random.default_rng(0).permutation(len(x))
  found = gmm.predict(fit(x[order]).params, x[order])
  np.testing.assert_array_equal(found, labels[order])


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_whole_weights_are_repeated_rows(covariance):
  x, _ = clusters()
  weight = np.random.default_rng(0).integers(0, 3, size=len(x))
  fit = functools.partial(
    gmm.fit, KEY, num_components=3, covariance=covariance, init=x[:3]
  )
  weighted = fit(x, sample_weight=weight)
  repeated = fit(np.repeat(x, weight, axis=0))
  chex.assert_trees_all_close(
    weighted.params, repeated.params, rtol=1e-3, atol=1e-3
  )
  np.testing.assert_allclose(
    gmm.bic(weighted.params, x, weight),
    gmm.bic(repeated.params, np.repeat(x, weight, axis=0)),
    rtol=1e-4,
  )


@pytest.mark.parametrize('covariance', FAMILIES)
def test_weights_count_only_in_proportion(covariance):
  x, _ = clusters()
  weight = np.random.default_rng(0).uniform(size=len(x)).astype(np.float32)
  fit = functools.partial(gmm.fit, KEY, x, num_components=3)
  fit = functools.partial(fit, covariance=covariance)
  plain = fit(sample_weight=weight)
  for factor in (1000, 1e-9):
    result = fit(sample_weight=weight * factor)
    chex.assert_trees_all_close(
      result.params, plain.params, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
      result.log_likelihood, plain.log_likelihood, rtol=1e-5
    )


def test_a_solution_is_a_fixed_point():
  x, _ = clusters()
  first = gmm.fit(KEY, x, num_components=3, tol=1e-6, reg=0.0)
  again = gmm.fit(KEY, x, num_components=3, init=first.params, reg=0.0)
  assert again.num_steps == 1
  np.testing.assert_allclose(
    again.log_likelihood, first.log_likelihood, atol=1e-4
  )
  assert again.converged


def test_a_state_has_the_likelihood_of_its_own_parameters():
  x, _ = clusters()
  result = gmm.fit(KEY, x, num_components=3)
  np.testing.assert_allclose(
    gmm.log_prob(result.params, x).mean(), result.log_likelihood, rtol=1e-5
  )


# Transformations


@pytest.mark.slow
def test_a_fit_under_vmap_is_a_loop_of_fits():
  x = np.stack([clusters(seed=s)[0] for s in range(2)])

  def fit(x):
    return gmm.fit(KEY, x, num_components=3)

  batched = jax.jit(jax.vmap(fit))(x)
  for i in range(2):
    alone = fit(x[i])
    np.testing.assert_allclose(
      batched.log_likelihood[i], alone.log_likelihood, rtol=1e-6
    )
    params = jax.tree.map(lambda a, i=i: np.asarray(a)[i], batched.params)
    np.testing.assert_array_equal(
      gmm.predict(params, x[i]), gmm.predict(alone.params, x[i])
    )


def test_a_fit_does_not_depend_on_jit():
  x, _ = clusters(apart=1.0)
  plain, jitted = fit_from_rows(x), jax.jit(fit_from_rows)(x)
  assert plain.num_steps > 2
  np.testing.assert_allclose(
    jitted.log_likelihood, plain.log_likelihood, rtol=1e-6
  )
  np.testing.assert_array_equal(
    gmm.predict(jitted.params, x), gmm.predict(plain.params, x)
  )


def test_restarts_together_are_restarts_in_a_loop():
  x, _ = clusters(apart=1.0)
  starts = x[:12].reshape(4, 3, 3)
  state = gmm.start(KEY, x, num_components=3, init=starts)
  state, _ = gmm.run(state, x)
  together = gmm.best(state)
  alone = [gmm.fit(KEY, x, num_components=3, init=s) for s in starts]
  for params, one in zip(params_of_runs(state), alone, strict=True):
    labels = gmm.predict(params, x)
    assert same_partition(labels, gmm.predict(one.params, x))
  likelihoods = [float(a.log_likelihood) for a in alone]
  np.testing.assert_allclose(together.log_likelihoods, likelihoods, rtol=1e-6)
  np.testing.assert_allclose(
    together.log_likelihood, max(likelihoods), rtol=1e-6
  )


def test_steps_of_several_runs_are_parts_of_whole_runs():
  x, _ = clusters(apart=1.0)
  starts = x[:12].reshape(4, 3, 3)
  state = gmm.start(KEY, x, num_components=3, init=starts)
  whole, _ = gmm.run(state, x, max_steps=20)
  first, history = gmm.run(state, x, 1)
  np.testing.assert_array_equal(first.num_steps, [1] * 4)
  np.testing.assert_array_equal(history[0], first.objective)
  assert (first.objective < state.objective).all()
  rest, _ = gmm.run(first, x, max_steps=20)
  chex.assert_trees_all_close(rest, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('init', ['k-means', 'random'])
def test_a_start_has_made_its_first_pass(init):
  x, _ = clusters(apart=1.0)
  state = gmm.start(KEY, x, num_components=3, num_restarts=2, init=init)
  np.testing.assert_array_equal(state.num_steps, [0, 0])
  begun = gmm.best(state)
  expected = gmm.log_prob(begun.params, x).mean()
  np.testing.assert_allclose(begun.log_likelihood, expected, rtol=1e-5)


def test_a_key_gives_one_result():
  x, _ = clusters()
  chex.assert_trees_all_equal(
    gmm.fit(KEY, x, num_components=3), gmm.fit(KEY, x, num_components=3)
  )


@pytest.mark.parametrize(
  ('num_points', 'num_features', 'family'),
  [
    *((60_000, 128, 'full'), (2560, 128, 'full'), (2559, 128, 'tied')),
    *((256, 128, 'tied'), (255, 128, 'diag'), (1, 1, 'diag')),
  ],
)
def test_the_family_suits_the_number_of_points(
  num_points, num_features, family
):
  assert gmm.suited_family(num_points, num_features, 10) == family

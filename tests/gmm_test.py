"""Gaussian mixtures: EM, its laws and its corners, for all four families."""

import contextlib
import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.mixture
from sklearn.metrics import adjusted_rand_score

from jaxclust import gmm, numerics
from jaxclust.gmm import GMMParams
from jaxclust.numerics import InputError, StopReason

pytestmark = pytest.mark.usefixtures('light_compiler')

KEY = jax.random.key(0)
FAMILIES = list(gmm.FAMILIES)


def clusters(num_points=400, num_features=3, num_clusters=3, seed=0, apart=4.0):
  """Points `[N, D]` of sheared Gaussians."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_clusters, size=num_points)
  shear = rng.normal(size=(num_clusters, num_features, num_features))
  means = apart * rng.normal(size=(num_clusters, num_features))
  noise = rng.normal(size=(num_points, num_features))
  x = np.einsum('nd,nde->ne', noise, shear[labels]) + means[labels]
  return x.astype(np.float32), labels


def params_of(covariance, num_components=3, num_features=2, seed=0):
  rng = np.random.default_rng(seed)
  shape = gmm.FAMILIES[covariance].shape(num_components, num_features)
  scale = rng.uniform(0.5, 2, size=shape)
  if len(shape) == 3:
    scale = np.tril(scale)
  weights = rng.dirichlet(np.ones(num_components))
  means = rng.normal(size=(num_components, num_features))
  return GMMParams(
    *(jnp.asarray(a, jnp.float32) for a in (np.log(weights), means, scale))
  )


def broken_params(factor):
  params = params_of('full', num_features=3)
  return params._replace(scale_tril=factor * params.scale_tril)


def same_partition(a, b):
  return adjusted_rand_score(a, b) == 1


def covariances(params):
  """`[K, D, D]` in float64, whatever the family."""
  num_components, num_features = params.means.shape
  scale = np.asarray(params.scale_tril, np.float64)
  if scale.ndim == 2:
    scale = np.broadcast_to(scale, (num_components, num_features))
    return np.stack([np.diag(s**2) for s in scale])
  matrices = scale @ scale.swapaxes(1, 2)
  return np.broadcast_to(matrices, (num_components, *matrices.shape[1:]))


def log_densities(params, x):
  """`log w_k + log N(x_n; k)` `[N, K]` by SciPy."""
  return np.stack(
    [
      weight + scipy.stats.multivariate_normal(mean, cov).logpdf(x)
      for weight, mean, cov in zip(
        np.asarray(params.log_weights, np.float64),
        np.asarray(params.means, np.float64),
        covariances(params),
        strict=True,
      )
    ],
    axis=1,
  )


# Worked examples


def test_one_component_is_the_normal_of_the_data():
  x = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
  result = gmm.fit(KEY, x, num_components=1, reg=0.0)
  np.testing.assert_allclose(result.params.means, [[1, 2]], atol=1e-6)
  np.testing.assert_allclose(
    result.params.scale_tril[0], [[1, 0], [0, 2]], atol=1e-6
  )
  # log det = log 4, and a mean squared distance of D = 2.
  expected = -np.log(2 * np.pi) - 0.5 * np.log(4) - 1
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
  x = jnp.array([[-101.0], [-99.0], [99.0], [101.0]])
  result = gmm.fit(KEY, x, num_components=2, covariance='spherical', reg=0.0)
  np.testing.assert_allclose(np.sort(result.params.means[:, 0]), [-100, 100])
  np.testing.assert_allclose(result.params.scale_tril, [[1], [1]], rtol=1e-3)
  np.testing.assert_allclose(np.exp(result.params.log_weights), [0.5, 0.5])


# Independent references


@pytest.mark.parametrize('covariance', FAMILIES)
def test_densities_are_scipys(covariance):
  params = params_of(covariance)
  x = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
  joint = log_densities(params, x)
  expected = scipy.special.logsumexp(joint, axis=1)
  np.testing.assert_allclose(gmm.log_prob(params, x), expected, rtol=1e-4)
  np.testing.assert_allclose(
    gmm.responsibilities(params, x),
    np.exp(joint - expected[:, None]),
    atol=1e-5,
  )
  labels = gmm.predict(params, x)
  assert labels.dtype == jnp.int32
  np.testing.assert_array_equal(labels, joint.argmax(axis=1))


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
  order = np.argsort(-peer.weights_)
  weights = np.exp(ours.params.log_weights)
  np.testing.assert_allclose(weights, peer.weights_[order], rtol=1e-4)
  np.testing.assert_allclose(
    ours.params.means, peer.means_[order], rtol=1e-3, atol=1e-3
  )
  theirs = {
    'full': lambda c: c[order],
    'tied': lambda c: np.broadcast_to(c, (3, 3, 3)),
    'diag': lambda c: np.stack([np.diag(d) for d in c[order]]),
    'spherical': lambda c: np.stack([d * np.eye(3) for d in c[order]]),
  }[covariance](peer.covariances_)
  np.testing.assert_allclose(
    covariances(ours.params), theirs, rtol=1e-3, atol=1e-3
  )
  np.testing.assert_allclose(ours.log_likelihood, peer.score(x), rtol=1e-4)
  np.testing.assert_allclose(gmm.bic(ours.params, x), peer.bic(x), rtol=1e-4)
  np.testing.assert_allclose(gmm.aic(ours.params, x), peer.aic(x), rtol=1e-4)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_samples_have_the_moments_of_the_mixture(covariance):
  params = params_of(covariance)
  x = np.asarray(gmm.sample(KEY, params, 200_000))
  chex.assert_shape(x, (200_000, 2))
  weights = np.exp(np.asarray(params.log_weights))
  means = np.asarray(params.means)
  mean = weights @ means
  second = covariances(params) + means[:, :, None] * means[:, None]
  cov = np.einsum('k,kde->de', weights, second) - np.outer(mean, mean)
  np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.02)
  np.testing.assert_allclose(np.cov(x.T), cov, atol=0.05)


def test_samples_come_with_their_components():
  params = params_of('diag', num_components=2)
  far = params._replace(means=jnp.array([[0.0, 0.0], [1e3, 0.0]]))
  x, labels = gmm.sample_with_labels(KEY, far, 50)
  np.testing.assert_array_equal(labels, gmm.predict(far, x))
  assert labels.dtype == jnp.int32
  assert len(np.unique(labels)) == 2
  np.testing.assert_array_equal(x, gmm.sample(KEY, far, 50))


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


@pytest.mark.parametrize('covariance', FAMILIES)
def test_moments_keep_their_digits_far_from_the_frame(covariance):
  """Components 3,000 standard deviations apart, in float32."""
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1], 500)
  x = rng.normal(size=(1000, 2)) + 3000 * labels[:, None]
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
      variance = np.full(2, variance.mean())
    np.testing.assert_allclose(np.diag(found[k]), variance, rtol=2e-3)


def by_products_and_by_differences(params, x, weight):
  """Both forms of the E-step, `[moments, log-likelihood]` each."""
  frame = numerics.find_frame(x, weight, len(x))
  family = gmm.FAMILIES[gmm.family_of(params)]
  precision = family.precision(params.scale_tril)
  center = family.products.center(precision, params.means)
  white = family.whiten(precision, params.means, center[None])
  square = None
  if gmm.family_of(params) == 'tied':
    square = gmm.total_square(x, weight, frame)
  rows = (x, weight, frame, 50)
  products = gmm._e_step_by_products(
    params, precision, center, (white**2).sum(axis=(1, 2)), square, *rows
  )
  return products, gmm._e_step_by_differences(params, precision, *rows)


@pytest.mark.parametrize('covariance', ['tied', 'diag', 'spherical'])
def test_products_and_differences_make_one_e_step(covariance):
  x = jnp.asarray(clusters()[0])
  weight = jnp.linspace(0, 1, len(x))
  params = params_of(covariance, num_features=3)
  products, differences = by_products_and_by_differences(params, x, weight)
  chex.assert_trees_all_close(products, differences, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize('num_features', [1, 2, 9, 130])
def test_factors_and_inverses_are_numpys(num_features):
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(3, num_features, num_features + 5))
  matrix = noise @ noise.swapaxes(1, 2) / num_features
  factor = np.linalg.cholesky(matrix)
  x = jnp.asarray(matrix, jnp.float32)
  np.testing.assert_allclose(gmm._cholesky(x), factor, atol=1e-4)
  found = gmm._inverse_tril(jnp.asarray(factor, jnp.float32))
  np.testing.assert_allclose(found, np.linalg.inv(factor), atol=1e-3)
  assert np.isnan(gmm._cholesky(-x)).any()


# Laws


@pytest.mark.parametrize('covariance', FAMILIES)
def test_the_likelihood_never_falls(covariance):
  x, _ = clusters(num_clusters=5, apart=1.0)
  state = gmm.start(
    KEY, x, num_components=4, covariance=covariance, init='random', reg=0.0
  )
  first = state.log_likelihood
  _, history = gmm.run(state, x, 30, tol=-1.0, reg=0.0)
  chex.assert_shape(history, (30, 1))
  history = np.concatenate([first[None], history])
  assert (np.diff(history, axis=0) >= -1e-5).all()
  assert history[-1] > history[0] + 0.1


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
  x, _ = clusters()
  labels = np.asarray(gmm.predict(gmm.fit(KEY, x, num_components=3).params, x))
  order = np.random.default_rng(0).permutation(len(x))
  result = gmm.fit(KEY, x[order], num_components=3)
  found = gmm.predict(result.params, x[order])
  np.testing.assert_array_equal(found, labels[order])


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_whole_weights_are_repeated_rows(covariance):
  x, _ = clusters(num_points=90)
  weight = np.random.default_rng(0).integers(0, 4, size=90)
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


@pytest.mark.parametrize(
  ('init', 'padding'),
  [('k-means', 77), ('k-means', 1e15), ('random', 77)],
)
def test_padding_does_not_change_the_fit(init, padding):
  x, _ = clusters()
  padded = np.concatenate([np.full((30, 3), padding, np.float32), x])
  weight = np.concatenate([np.zeros(30), np.full(len(x), 2.0)])
  fit = functools.partial(gmm.fit, KEY, num_components=3, init=init)
  plain, result = fit(x), fit(padded, sample_weight=weight)
  chex.assert_trees_all_close(result.params, plain.params, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_batch_of_all_points_is_a_step_of_em(covariance):
  x, _ = clusters(apart=2.0)
  state = gmm.start(KEY, x, num_components=3, covariance=covariance)
  batch = gmm.update(state, x, decay=0.0)
  step, _ = gmm.run(state, x, 1)
  chex.assert_trees_all_close(batch.params, step.params, rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_close(batch.moments, step.moments, rtol=1e-3, atol=0.02)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_moments_of_batches_add_up(covariance):
  """Without forgetting, moments are those of both batches about new means."""
  x, _ = clusters(apart=2.0)
  state = gmm.start(
    KEY, x[:200], num_components=3, covariance=covariance, init='random'
  )
  new = gmm.update(state, x[200:], decay=1.0)
  one = jax.tree.map(lambda a: a[0], (state.params, new.params))
  weight = jnp.ones(200)
  rows = [(jnp.asarray(x[i : i + 200]), weight, state.frame) for i in (0, 200)]
  old = gmm.responsibilities(one[0], state.frame.enter(rows[0][0])).T
  family = gmm.FAMILIES[covariance]
  before = gmm._moments(
    family, old, weight, one[1].means, state.frame.enter(rows[0][0])
  )
  after, _ = gmm.e_step(one[1], *rows[1])
  expected = jax.tree.map(jnp.add, before, after)
  found = jax.tree.map(lambda a: a[0], new.moments)
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_batches_find_what_all_points_show(covariance):
  x, _ = clusters(num_points=6000)
  state = gmm.start(KEY, x[:500], num_components=3, covariance=covariance)
  for _ in range(3):
    for begin in range(0, 6000, 500):
      state = gmm.update(state, x[begin : begin + 500])
  found = gmm.best(state).params
  whole = gmm.fit(
    KEY, x, num_components=3, covariance=covariance, init=found, tol=1e-5
  )
  gap = whole.log_likelihood - gmm.log_prob(found, x).mean()
  assert -1e-4 < gap < 0.03


def test_a_batch_of_nan_stops_a_run_and_keeps_it():
  x, _ = clusters()
  state = gmm.start(KEY, x, num_components=3)
  broken = gmm.update(state, np.full_like(x[:20], np.nan))
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.params, state.params)
  again = gmm.update(broken, x[:20])
  assert again.stop_reason[0] == StopReason.NONFINITE


def test_a_batch_of_padding_changes_no_likelihood():
  x, _ = clusters()
  state = gmm.start(KEY, x, num_components=3)
  new = gmm.update(state, x[:20], np.zeros(20))
  assert new.stop_reason[0] == StopReason.RUNNING
  chex.assert_trees_all_equal(new.log_likelihood, state.log_likelihood)
  chex.assert_tree_all_finite(new)


def test_a_batch_cannot_be_remembered_more_than_whole():
  state = gmm.start(KEY, clusters()[0], num_components=3)
  with pytest.raises(InputError, match=r'decay is -3.0: .* from 0 to 1'):
    gmm.update(state, clusters()[0], decay=-3.0)


def test_strange_points_score_high():
  x, _ = clusters()
  params = gmm.fit(KEY, x, num_components=3).params
  x[7] = 1000
  assert gmm.outlier_score(params, x).argmax() == 7


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_pass_in_blocks_is_a_pass_over_the_whole(covariance):
  x, _ = clusters()
  params = params_of(covariance, num_features=3)
  weight = jnp.linspace(0, 1, len(x))
  frame = numerics.Frame(jnp.ones(3), jnp.float32(2))
  whole = gmm.e_step(params, jnp.asarray(x), weight, frame, len(x))
  blocks = gmm.e_step(params, jnp.asarray(x), weight, frame, 7)
  chex.assert_trees_all_close(blocks, whole, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(
    gmm.log_prob(params, x), gmm.log_prob(params, x, block_size=9), rtol=1e-5
  )


def test_predicting_a_part_is_a_part_of_predicting():
  x, _ = clusters()
  params = params_of('full', num_features=3)
  np.testing.assert_array_equal(
    gmm.predict(params, x[31:77]), gmm.predict(params, x)[31:77]
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


class TransformationsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_a_step_does_not_depend_on_jit(self):
    x = jnp.asarray(clusters()[0])
    state = gmm.start(KEY, x, num_components=3)
    single = jax.tree.map(lambda a: a[0], state._replace(frame=None))
    single = single._replace(frame=state.frame)
    moved = self.variant(gmm.step)(single, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, single)
    chex.assert_tree_all_finite(moved)
    run, history = gmm.run(state, x, 1)
    np.testing.assert_allclose(moved.log_likelihood, history[0, 0], rtol=1e-6)
    chex.assert_trees_all_close(
      moved.params, jax.tree.map(lambda a: a[0], run.params), rtol=1e-4
    )

  @pytest.mark.slow
  def test_a_fit_under_vmap_is_a_loop_of_fits(self):
    x = jnp.stack([jnp.asarray(clusters(seed=s)[0]) for s in range(2)])
    batched = jax.vmap(lambda x: gmm.fit(KEY, x, num_components=3))(x)
    for i in range(2):
      alone = gmm.fit(KEY, x[i], num_components=3)
      np.testing.assert_allclose(
        batched.log_likelihood[i], alone.log_likelihood, rtol=1e-6
      )
      params = jax.tree.map(lambda a, i=i: a[i], batched.params)
      np.testing.assert_array_equal(
        gmm.predict(params, x[i]), gmm.predict(alone.params, x[i])
      )

  @pytest.mark.slow
  def test_a_fit_does_not_depend_on_jit(self):
    x = jnp.asarray(clusters(num_points=40, apart=1.0)[0])
    fit = functools.partial(gmm.fit, KEY, num_components=2, init=x[:2])
    plain, jitted = fit(x), jax.jit(fit)(x)
    assert plain.num_steps > 2
    np.testing.assert_allclose(
      jitted.log_likelihood, plain.log_likelihood, rtol=1e-6
    )
    np.testing.assert_array_equal(
      gmm.predict(jitted.params, x), gmm.predict(plain.params, x)
    )

  def test_restarts_together_are_restarts_in_a_loop(self):
    x = clusters(apart=1.0)[0]
    starts = jnp.asarray(x[:12].reshape(4, 3, 3))
    state = gmm.start(KEY, x, num_components=3, init=starts)
    state, _ = gmm.run(state, x)
    together = gmm.best(state)
    alone = [gmm.fit(KEY, x, num_components=3, init=s) for s in starts]
    for run, one in enumerate(alone):
      params = jax.tree.map(lambda a, run=run: a[run], state.params)
      labels = gmm.predict(params, state.frame.enter(x))
      assert same_partition(labels, gmm.predict(one.params, x))
    likelihoods = [float(a.log_likelihood) for a in alone]
    np.testing.assert_allclose(together.log_likelihoods, likelihoods, rtol=1e-6)
    np.testing.assert_allclose(
      together.log_likelihood, max(likelihoods), rtol=1e-6
    )

  @pytest.mark.slow
  def test_runs_in_parts_are_a_whole_run(self):
    x = clusters(apart=1.0)[0]
    state = gmm.start(KEY, x, num_components=3, num_restarts=2)
    whole, _ = gmm.run(state, x, tol=1e-5)
    calls = 0
    while (state.stop_reason == StopReason.RUNNING).any():
      state, _ = gmm.run(state, x, 4, tol=1e-5)
      calls += 1
    assert calls > 1
    chex.assert_trees_all_close(state, whole, rtol=1e-4, atol=1e-4)


def test_a_second_call_with_a_new_tolerance_compiles_nothing(caplog):
  x, _ = clusters(num_points=401)  # of which no other test has programs

  def compiled(key, **options):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      result = gmm.fit(key, x, num_components=3, **options)
      gmm.predict(result.params, x)
    return [text for text in caplog.messages if 'XLA compilation' in text]

  other = jax.random.key(1)
  assert compiled(KEY, tol=1e-3, reg=1e-6)
  assert not compiled(KEY, tol=1e-3, reg=1e-6)
  assert not compiled(other, tol=1e-2, reg=1e-3, max_steps=99)


def test_a_key_gives_one_result():
  x, _ = clusters()
  chex.assert_trees_all_equal(
    gmm.fit(KEY, x, num_components=3), gmm.fit(KEY, x, num_components=3)
  )


# Corners


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_constant_feature_leaves_everything_finite(covariance):
  x, _ = clusters()
  x = np.concatenate([x, np.full((len(x), 1), 4.0, np.float32)], axis=1)
  result = gmm.fit(KEY, x, num_components=3, covariance=covariance)
  chex.assert_tree_all_finite(result)
  assert result.num_repaired == 0


@pytest.mark.parametrize('covariance', ['full', 'tied', 'diag'])
def test_without_a_ridge_a_singular_covariance_is_repaired(covariance):
  x, _ = clusters()
  x = np.concatenate([x, np.full((len(x), 1), 4.0, np.float32)], axis=1)
  with pytest.warns(UserWarning, match='singular'):
    result = gmm.fit(KEY, x, num_components=3, covariance=covariance, reg=0.0)
  chex.assert_tree_all_finite(result)
  assert result.num_repaired == (1 if covariance == 'tied' else 3)


def test_the_ridge_that_repairs_is_the_least_that_works():
  noise = np.random.default_rng(1).normal(size=(6, 3))
  scales = 2.0 ** np.arange(4)[:, None, None]
  singular = jnp.asarray(scales * (noise @ noise.T), jnp.float32)
  factor = gmm.FAMILIES['full'].factor
  ridges = np.finfo(np.float32).eps * 2.0 ** np.arange(20, dtype=np.float32)
  factors, sound = jax.vmap(lambda r: factor(singular, jnp.full(4, r)))(
    jnp.asarray(ridges)
  )
  least = np.asarray(sound).argmax(axis=0)
  assert len(set(least % 4)) == 4
  found, repaired = gmm._factor_with_repair(gmm.FAMILIES['full'], singular, 0.0)
  assert repaired.all()
  expected = factors[least, np.arange(4)]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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
  x = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
  weight = np.full(30, weight)
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
  x = np.full((21, 4), 3.0, np.float32)
  with pytest.warns(UserWarning, match='4 of 5 components have lost all'):
    result = gmm.fit(KEY, x, num_components=5, covariance=covariance)
  chex.assert_tree_all_finite(result)
  np.testing.assert_allclose(result.params.means[0], np.full(4, 3), rtol=1e-5)
  assert result.num_steps <= 2


@pytest.mark.filterwarnings('ignore:.*rank-deficient')
@pytest.mark.parametrize('covariance', FAMILIES)
def test_too_few_distinct_rows_give_that_many_labels(covariance):
  x = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 7, axis=0)
  x = x.astype(np.float32)
  with pytest.warns(UserWarning, match='2 of 5 components have lost all'):
    result = gmm.fit(KEY, x, num_components=5, covariance=covariance, tol=0.0)
  assert len(np.unique(gmm.predict(result.params, x))) == 3
  assert result.converged


@pytest.mark.parametrize('init', ['random', 'k-means++'])
def test_components_that_are_one_are_told_of(init):
  x = np.full((50, 2), 3.0, np.float32)
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
    result = gmm.fit(KEY, jnp.array([[3.0, 5.0]]), num_components=1)
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
  result = fit(x, covariance=covariance, tol=0, max_steps=2000)
  assert result.converged


def test_nan_that_cannot_be_seen_is_never_converged():
  x = jnp.asarray(clusters()[0]).at[5, 1].set(jnp.nan)
  result = jax.jit(lambda x: gmm.fit(KEY, x, num_components=3))(x)
  assert result.stop_reason == StopReason.NONFINITE
  assert not result.converged


def test_a_likelihood_that_turns_nan_keeps_the_last_parameters():
  x = jnp.asarray(clusters()[0])
  state = gmm.start(KEY, x, num_components=3)
  state, _ = gmm.run(state, x, 2, tol=0.0)
  broken, history = gmm.run(state, x.at[5, 1].set(jnp.nan), 3, tol=0.0)
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.params, state.params)
  np.testing.assert_array_equal(history[:, 0], [state.log_likelihood[0]] * 3)
  result = gmm.best(broken)
  assert not result.converged
  with pytest.warns(UserWarning, match='the likelihood is not finite'):
    gmm.warn(result)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.uint8])
def test_narrow_data_are_summed_in_float32(dtype):
  x = jax.random.randint(KEY, (4000, 3), 0, 200).astype(dtype)
  fit = functools.partial(gmm.fit, KEY, num_components=3, covariance='diag')
  wide = x.astype(jnp.float32)
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


def test_further_points_must_fit_the_first():
  x, _ = clusters()
  state = gmm.start(KEY, x, num_components=3)
  for function in (gmm.run, gmm.update):
    with pytest.raises(InputError, match=r'it must be \[N, 3\]'):
      function(state, x[:, :2])


@pytest.mark.parametrize('num_samples', [-1, 2.5])
def test_a_number_of_samples_is_a_whole_number(num_samples):
  with pytest.raises(InputError, match=f'num_samples is {num_samples}'):
    gmm.sample(KEY, params_of('full'), num_samples)


def test_points_must_have_the_features_of_the_mixture():
  with pytest.raises(InputError, match=r'it must be \[N, 2\]'):
    gmm.predict(params_of('full'), clusters()[0])

"""Gaussian mixtures: EM, its laws and its corners, for all four families."""

import functools

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


def broken_params():
  params = params_of('full', num_features=3)
  return params._replace(scale_tril=-params.scale_tril)


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
@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64', 'bool'])
def test_any_real_numbers_can_be_fitted_where_float64_is_enabled(dtype):
  x = (clusters()[0] > 0) if dtype == 'bool' else clusters()[0].astype(dtype)
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
def test_float32_agrees_with_float64():
  x, _ = clusters()
  single = gmm.fit(KEY, x, num_components=3)
  with jax.enable_x64(True):
    double = gmm.fit(KEY, x.astype(np.float64), num_components=3)
    assert double.log_likelihood.dtype == jnp.float64
  np.testing.assert_allclose(
    single.log_likelihood, double.log_likelihood, rtol=1e-4
  )


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


@pytest.mark.parametrize('padding', [77, 1e15])
def test_padding_does_not_change_the_fit(padding):
  x, _ = clusters()
  padded = np.concatenate([np.full((30, 3), padding, np.float32), x])
  weight = np.concatenate([np.zeros(30), np.full(len(x), 2.0)])
  plain = gmm.fit(KEY, x, num_components=3)
  result = gmm.fit(KEY, padded, num_components=3, sample_weight=weight)
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
        batched.log_likelihood[i], alone.log_likelihood, rtol=1e-5
      )

  def test_restarts_together_are_restarts_in_a_loop(self):
    x = clusters(apart=1.0)[0]
    starts = jnp.asarray(x[:12].reshape(4, 3, 3))
    together = gmm.fit(KEY, x, num_components=3, init=starts)
    alone = [gmm.fit(KEY, x, num_components=3, init=s) for s in starts]
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


def test_a_new_tolerance_compiles_nothing():
  x, _ = clusters()
  gmm.fit(KEY, x, num_components=3, tol=1e-3, reg=1e-6)
  before = gmm.run._cache_size(), gmm._start_from_clusters._cache_size()
  gmm.fit(KEY, x, num_components=3, tol=1e-2, reg=1e-3, max_steps=99)
  after = gmm.run._cache_size(), gmm._start_from_clusters._cache_size()
  assert after == before


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


@pytest.mark.parametrize('weight', [1.0, 100.0])
def test_more_features_than_points_warn_of_a_deficient_rank(weight):
  x = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
  with pytest.warns(UserWarning, match='rank-deficient'):
    result = gmm.fit(
      KEY, x, num_components=3, sample_weight=np.full(30, weight)
    )
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


def test_a_component_that_loses_its_points_is_reported():
  x, _ = clusters()
  start = np.stack([x[0], x[1], np.full(3, 1e6, np.float32)])
  with pytest.warns(UserWarning, match='1 of 3 components have lost'):
    result = gmm.fit(KEY, x, num_components=3, init=start, covariance='diag')
  chex.assert_tree_all_finite(result)


@pytest.mark.filterwarnings('ignore:.*lost all', 'ignore:.*rank-deficient')
@pytest.mark.parametrize('covariance', FAMILIES)
def test_equal_rows_leave_everything_finite(covariance):
  x = np.full((50, 2), 3.0, np.float32)
  result = gmm.fit(KEY, x, num_components=2, covariance=covariance)
  chex.assert_tree_all_finite(result)
  np.testing.assert_allclose(result.params.means[0], [3, 3], rtol=1e-5)


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


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_components': 5000}, 'num_components is 5000, but x has only 400'),
    ({'num_components': -1}, 'num_components is -1'),
    ({'num_components': 2, 'covariance': 'fll'}, "covariance is 'fll'"),
    ({'num_components': 2, 'init': 'best'}, "init is 'best'"),
    ({'num_components': 2, 'init': np.ones((2, 7))}, r'shape \(2, 7\)'),
    ({'num_components': 2, 'reg': -1.0}, 'reg is -1'),
    ({'num_components': 2, 'tol': np.nan}, 'tol is nan'),
    ({'num_components': 2, 'init': params_of('full')}, 'init has the shapes'),
    ({'num_components': 3, 'init': broken_params()}, 'scales that are not'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  with pytest.raises(InputError, match=message):
    gmm.fit(KEY, clusters()[0], **options)


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

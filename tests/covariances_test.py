"""Families of covariances: their factors, and what is a sum over points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import FAMILIES, KEY, covariances, params_of

from jaxclust.algorithms.covariances import FAMILIES as FUNCTIONS
from jaxclust.algorithms.covariances import (
  cholesky,
  color,
  factor,
  factor_with_repair,
  half_log_det,
  identity,
  invert,
)


def in_family(covariance, matrices):
  """What a family keeps of second moments `[K, D, D]`."""
  diagonal = np.diagonal(matrices, axis1=1, axis2=2)
  return {
    'full': lambda: matrices,
    'tied': lambda: matrices.sum(axis=0, keepdims=True),
    'diag': lambda: diagonal,
    'spherical': lambda: diagonal.mean(axis=1, keepdims=True),
  }[covariance]()


@pytest.fixture
def sums():
  """Responsibilities, weights, points and means about which they are."""
  rng = np.random.default_rng(0)
  shares = rng.dirichlet(np.ones(3), size=50).T
  weight = rng.uniform(size=50)
  x, means = rng.normal(size=(50, 2)), rng.normal(size=(3, 2))
  return shares, weight, x, means


def second_moments(shares, weight, x, means):
  difference = x[None] - means[:, None]
  return np.einsum('kb,kbd,kbe->kde', shares * weight, difference, difference)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_scatter_is_the_weighted_sum_of_squares(covariance, sums):
  shares, weight, x, means = sums
  args = (jnp.asarray(a, jnp.float32) for a in (shares, weight, means, x))
  found = FUNCTIONS[covariance].scatter(*args)
  expected = second_moments(shares, weight, x, means)
  np.testing.assert_allclose(found, in_family(covariance, expected), rtol=1e-4)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_moved_second_moments_are_those_about_the_new_means(covariance, sums):
  shares, weight, x, means = sums
  shift = np.array([[1.0, -1.0], [0.5, 2.0], [-3.0, 0.25]])
  before, after = (
    in_family(covariance, second_moments(shares, weight, x, about))
    for about in (means, means + shift)
  )
  counts = (shares * weight).sum(axis=1, keepdims=True)
  first = (shares * weight) @ x - counts * means
  moved = first - 0.5 * counts * shift
  args = (jnp.asarray(a, jnp.float32) for a in (before, moved, shift))
  found = FUNCTIONS[covariance].recenter(*args)
  np.testing.assert_allclose(found, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_the_inverse_factor_whitens_what_the_factor_colors(covariance):
  family, params = FUNCTIONS[covariance], params_of(covariance)
  noise = jax.random.normal(KEY, (20, 2))
  inverse = invert(params.scale_tril)
  for k in range(3):
    scale = params.scale_tril[k % len(params.scale_tril)]
    x = params.means[k][None] + color(scale, noise)
    white = family.whiten(inverse, params.means, x)[k]
    np.testing.assert_allclose(white, noise, atol=1e-5)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_log_determinants_are_numpys(covariance):
  params = params_of(covariance)
  found = half_log_det(params.scale_tril, 2)
  _, expected = np.linalg.slogdet(covariances(params))
  np.testing.assert_allclose(np.broadcast_to(found, 3), expected / 2, atol=1e-6)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_the_identity_of_a_family_has_covariance_one(covariance):
  shape = FUNCTIONS[covariance].shape(3, 2)
  scale = identity(shape, jnp.float32)
  assert scale.shape == shape
  params = params_of(covariance)._replace(scale_tril=scale)
  np.testing.assert_array_equal(covariances(params), np.stack([np.eye(2)] * 3))


@pytest.mark.parametrize('reg', [0.5, 1e-9, 0.0])
@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_sound_covariance_gets_the_ridge_alone(covariance, reg):
  params = params_of(covariance)
  matrices = covariances(params)[: len(params.scale_tril)]  # one if tied
  second = in_family(covariance, matrices)
  scale, repaired = factor_with_repair(jnp.asarray(second, jnp.float32), reg)
  assert not repaired.any()
  found = covariances(params._replace(scale_tril=scale))[: len(scale)]
  np.testing.assert_allclose(found, matrices + reg * np.eye(2), rtol=1e-4)


def test_the_ridge_that_repairs_is_the_least_that_works():
  noise = np.random.default_rng(1).normal(size=(6, 3))
  scales = 2.0 ** np.arange(4)[:, None, None]
  singular = jnp.asarray(scales * (noise @ noise.T), jnp.float32)
  ridges = np.finfo(np.float32).eps * 2.0 ** np.arange(20, dtype=np.float32)
  factors, sound = jax.vmap(lambda r: factor(singular, jnp.full(4, r)))(
    jnp.asarray(ridges)
  )
  least = np.asarray(sound).argmax(axis=0)
  assert len(set(least % 4)) == 4
  found, repaired = factor_with_repair(singular, 0.0)
  assert repaired.all()
  expected = factors[least, np.arange(4)]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_features', [1, 2, 9, 130])
def test_factors_and_inverses_are_numpys(num_features):
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(3, num_features, num_features + 5))
  matrix = noise @ noise.swapaxes(1, 2) / num_features
  expected = np.linalg.cholesky(matrix)
  x = jnp.asarray(matrix, jnp.float32)
  np.testing.assert_allclose(cholesky(x), expected, atol=1e-4)
  found = invert(jnp.asarray(expected, jnp.float32))
  np.testing.assert_allclose(found, np.linalg.inv(expected), atol=1e-3)
  assert np.isnan(cholesky(-x)).any()

"""Densities, labels and samples of given mixtures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from mixtures import (
  FAMILIES,
  KEY,
  clusters,
  covariances,
  log_densities,
  params_of,
)

from jaxclust import gmm
from jaxclust.errors import InputError


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


def test_another_number_of_samples_compiles_nothing(count_programs):
  params = params_of('full')
  many = np.asarray(gmm.sample(KEY, params, 100))
  assert count_programs(gmm.sample, KEY, params, 7) == 0
  np.testing.assert_array_equal(gmm.sample(KEY, params, 7), many[:7])
  traced = jax.jit(gmm.sample, static_argnums=2)(KEY, params, 7)
  np.testing.assert_allclose(traced, many[:7], rtol=1e-6)


def test_strange_points_score_high():
  x, _ = clusters()
  params = params_of('full', num_features=3)
  x[7] = 1000
  assert gmm.outlier_score(params, x).argmax() == 7


def test_predicting_a_part_is_a_part_of_predicting():
  x, _ = clusters()
  params = params_of('full', num_features=3)
  np.testing.assert_array_equal(
    gmm.predict(params, x[31:77]), gmm.predict(params, x)[31:77]
  )


@pytest.mark.parametrize('num_samples', [-1, 2.5])
def test_a_number_of_samples_is_a_whole_number(num_samples):
  with pytest.raises(InputError, match=f'num_samples is {num_samples}'):
    gmm.sample(KEY, params_of('full'), num_samples)


def test_points_must_have_the_features_of_the_mixture():
  with pytest.raises(InputError, match=r'it must be \[N, 2\]'):
    gmm.predict(params_of('full'), clusters()[0])

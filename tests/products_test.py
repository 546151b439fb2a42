"""The E-step by products is the plain one, or gives way to it."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from mixtures import clusters, params_of

from jaxclust.algorithms import em, products, solver
from jaxclust.algorithms.products import PRODUCTS
from jaxclust.frames import Frame
from jaxclust.rows import Rows

X = clusters()[0]
ROWS = Rows(
  jnp.asarray(X),
  jnp.linspace(0, 1, len(X)),
  Frame(jnp.ones(3), jnp.float32(2)),
  block_size=150,
)


@functools.cache
def steps_of(covariance):
  """The E-step by products, compiled once, and the plain one."""
  algorithm = products.em_by_products(covariance)

  @jax.jit
  def by_products(mixture):
    memory = algorithm.begin(mixture, ROWS)
    moments, kept = algorithm.sweep(mixture, memory, ROWS)
    chex.assert_trees_all_equal_shapes(kept, memory)
    return moments, products._is_trusted(covariance, mixture, memory, ROWS)

  @jax.jit
  def plain(mixture):
    return solver.sum_stats(em.em(covariance), mixture, ROWS)

  return by_products, plain


def both_steps(covariance, params):
  """Moments by products, whether these are trusted, and the plain moments."""
  mixture = em.Mixture(em.as_runs(params), jnp.zeros(1, jnp.int32))
  by_products, plain = steps_of(covariance)
  return *by_products(mixture), plain(mixture)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_products_and_differences_make_one_e_step(covariance):
  params = params_of(covariance, num_features=3)
  found, trusted, plain = both_steps(covariance, params)
  assert trusted
  chex.assert_trees_all_close(found, plain, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_where_products_lose_digits_differences_are_taken(covariance):
  """The means of narrow components are thousands of deviations apart."""
  params = params_of(covariance, num_features=3)
  params = params._replace(scale_tril=1e-3 * params.scale_tril)
  found, trusted, plain = both_steps(covariance, params)
  assert not trusted
  chex.assert_trees_all_close(found, plain, rtol=1e-5)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_padding_of_components_takes_no_part(covariance):
  params = params_of(covariance, num_features=3)
  params = params._replace(log_weights=params.log_weights.at[2].set(-jnp.inf))
  found, trusted, plain = both_steps(covariance, params)
  assert trusted
  assert found.counts[0, 2] == 0
  chex.assert_trees_all_close(found, plain, rtol=1e-4, atol=2e-3)

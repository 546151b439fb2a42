"""The E-step by products is the plain one, or gives way to it."""

import chex
import jax
import jax.numpy as jnp
import pytest
from mixtures import clusters, params_of

from jaxclust.algorithms import em, products, solver
from jaxclust.algorithms.em import EM
from jaxclust.algorithms.products import EM_BY_PRODUCTS, PRODUCTS
from jaxclust.frames import Frame
from jaxclust.rows import Rows

X = clusters()[0]
ROWS = Rows(
  jnp.asarray(X),
  jnp.linspace(0, 1, len(X)),
  Frame(jnp.ones(3), jnp.float32(2)),
  block_size=150,
)


@jax.jit
def both_steps(params):
  """Moments by products, whether these are trusted, and the plain moments."""
  mixture = em.Mixture(em.as_runs(params), jnp.zeros(1, jnp.int32))
  memory = EM_BY_PRODUCTS.begin(mixture, ROWS)
  moments, kept = EM_BY_PRODUCTS.sweep(mixture, memory, ROWS)
  chex.assert_trees_all_equal_shapes(kept, memory)
  trusted = products._is_trusted(em.prepare(params), memory, ROWS)
  return moments, trusted, solver.sum_stats(EM, mixture, ROWS)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_products_and_differences_make_one_e_step(covariance):
  params = params_of(covariance, num_features=3)
  found, trusted, plain = both_steps(params)
  assert trusted
  chex.assert_trees_all_close(found, plain, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_where_products_lose_digits_differences_are_taken(covariance):
  """The means of narrow components are thousands of deviations apart."""
  params = params_of(covariance, num_features=3)
  params = params._replace(scale_tril=1e-3 * params.scale_tril)
  found, trusted, plain = both_steps(params)
  assert not trusted
  chex.assert_trees_all_close(found, plain, rtol=1e-5)


@pytest.mark.parametrize('covariance', PRODUCTS)
def test_padding_of_components_takes_no_part(covariance):
  params = params_of(covariance, num_features=3)
  params = params._replace(log_weights=params.log_weights.at[2].set(-jnp.inf))
  found, trusted, plain = both_steps(params)
  assert trusted
  assert found.counts[0, 2] == 0
  chex.assert_trees_all_close(found, plain, rtol=1e-4, atol=2e-3)

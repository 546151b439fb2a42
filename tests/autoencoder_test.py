"""The network at the report's size and at others."""

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxclust import autoencoder
from jaxclust.autoencoder import Autoencoder


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_reports_network_has_4385_parameters_and_a_code_of_128():
  model = Autoencoder((28, 28, 1))
  images = jnp.ones((2, 28, 28, 1))
  params = jax.jit(model.init)(jax.random.key(0), images)
  assert count(params) == 4385
  code = jax.jit(model.apply, static_argnames='method')(
    params, images, method='encode'
  )
  chex.assert_shape(code, (2, 128))
  assert autoencoder.code_size((28, 28, 1), (16, 8, 8)) == 128
  chex.assert_shape(jax.jit(model.apply)(params, images), (2, 28, 28, 1))


def test_maps_shrink_by_halves_rounded_up():
  sizes = autoencoder.level_sizes((28, 28, 1), 3)
  assert sizes == [(28, 28), (14, 14), (7, 7), (4, 4)]


@pytest.mark.parametrize(
  ('shape', 'features'),
  [
    ((27, 31, 1), (6, 4)),
    ((27, 31, 3), (6, 4)),
    ((27, 31, 4), (6, 4)),
    ((8, 8, 1), (4,)),
    ((5, 9, 4), (4, 4, 2)),
    ((1, 1, 1), (2, 2)),
  ],
)
def test_a_reconstruction_has_the_shape_of_its_image(shape, features):
  model = Autoencoder(shape, features)
  images = jax.random.uniform(jax.random.key(0), (3, *shape))

  @jax.jit
  def reconstruct(key, images):
    out, params = model.init_with_output(key, images)
    code = model.apply(params, images, method='encode')
    return out, code, model.apply(params, code, method='decode')

  out, code, decoded = reconstruct(jax.random.key(1), images)
  chex.assert_shape(out, images.shape)
  chex.assert_tree_all_finite(out)
  assert (out >= 0).all()
  chex.assert_shape(code, (3, autoencoder.code_size(shape, features)))
  chex.assert_trees_all_close(decoded, out, atol=1e-6)


def test_black_images_have_finite_gradients():
  model = Autoencoder((8, 8, 1), (4, 2))
  images = jnp.zeros((2, 8, 8, 1))
  params = jax.jit(model.init)(jax.random.key(0), images)
  loss = lambda p: jnp.square(model.apply(p, images)).mean()  # noqa: E731
  chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(params))

"""Networks at the sizes of the papers and at others."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import networks
from jaxclust.errors import InputError

pytestmark = pytest.mark.usefixtures('light_compiler')


def init(network, num_images=2):
  images = jax.random.uniform(
    jax.random.key(0), (num_images, *network.image_shape)
  )
  return images, jax.jit(network.init)(jax.random.key(1), images)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('name', 'num_parameters', 'code_size', 'operations'),
  [
    ('conv', 4385, 128, 1_486_080),
    ('mlp', 3_330_794, 10, 6_648_000),
    ('strided', 619_168, 256, 5_527_808),
    ('edges', 620_768, 256, 6_155_008),
    ('outlines', 619_968, 256, 5_841_408),
  ],
)
def test_networks_have_the_size_of_their_papers(
  name, num_parameters, code_size, operations
):
  network = networks.build((28, 28, 1), name=name)
  images = jnp.zeros((1, 28, 28, 1))
  params = jax.eval_shape(network.init, jax.random.key(0), images)
  assert count(params) == num_parameters
  assert network.code_size() == code_size
  assert network.count_operations() == operations


def test_maps_shrink_by_halves_rounded_up():
  sizes = networks.build((28, 28, 1)).level_sizes()
  assert sizes == [(28, 28), (14, 14), (7, 7), (4, 4)]


@pytest.mark.parametrize(
  ('name', 'shape', 'features'),
  [
    ('conv', (27, 31, 3), (6, 4)),
    ('conv', (8, 8, 1), (4,)),
    ('conv', (5, 9, 4), (4, 4, 2)),
    ('conv', (1, 1, 1), (2, 2)),
    ('mlp', (5, 9, 4), (6, 3)),
    ('mlp', (1, 1, 1), (2,)),
  ],
)
def test_a_reconstruction_has_the_shape_of_its_image(name, shape, features):
  network = networks.build(shape, name=name, features=features)
  images = jax.random.uniform(jax.random.key(0), (3, *shape))

  @jax.jit
  def reconstruct(key, images):
    out, params = network.init_with_output(key, images)
    code = network.apply(params, images, method='encode')
    return out, code, network.apply(params, code, method='decode')

  out, code, decoded = reconstruct(jax.random.key(1), images)
  chex.assert_shape(out, images.shape)
  chex.assert_tree_all_finite(out)
  assert name == 'mlp' or (out >= 0).all()
  chex.assert_shape(code, (3, network.code_size()))
  chex.assert_trees_all_close(decoded, out, atol=1e-6)


def test_dense_layers_are_products_of_matrices():
  """Relu follows each layer but the code and the reconstruction."""
  network = networks.build((2, 3, 1), name='mlp', features=(5, 2))
  images, params = init(network)
  weights = jax.tree.map(np.asarray, params['params'])

  def layer(name, x):
    return x @ weights[name]['kernel'] + weights[name]['bias']

  hidden = np.maximum(layer('encoder_0', np.asarray(images).reshape(2, 6)), 0)
  code = layer('encoder_1', hidden)
  np.testing.assert_allclose(
    network.apply(params, images, method='encode'), code, rtol=1e-5, atol=1e-6
  )
  out = layer('decoder_1', np.maximum(layer('decoder_0', code), 0))
  np.testing.assert_allclose(
    network.apply(params, images), out.reshape(2, 2, 3, 1), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('name', networks.NETWORKS)
def test_activations_have_their_dtype_and_codes_are_float32(name):
  network = networks.build((4, 4, 1), name=name, features=(4, 2))
  images, params = init(network)
  half = network.clone(dtype=jnp.bfloat16)
  code, near = (
    jax.jit(functools.partial(n.apply, method='encode'))(params, images)
    for n in (network, half)
  )
  assert code.dtype == near.dtype == jnp.float32
  assert (code != near).any()
  np.testing.assert_allclose(near, code, atol=0.05)
  assert jax.eval_shape(half.apply, params, images).dtype == jnp.float32


@pytest.mark.parametrize('name', networks.NETWORKS)
def test_black_images_have_finite_gradients(name):
  network = networks.build((8, 8, 1), name=name, features=(4, 2))
  images, params = init(network)
  images = jnp.zeros_like(images)
  loss = lambda p: jnp.square(network.apply(p, images)).mean()  # noqa: E731
  chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'vgg'}, "network.name is 'vgg': it must be one of conv, mlp"),
    ({'features': 8}, 'features is 8: name the width of each layer'),
    ({'features': (8, 0)}, 'each of features is 0'),
    ({'features': (8, 2.5)}, 'each of features is 2.5'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  with pytest.raises(InputError, match=message):
    networks.check_options(**{'name': 'conv', 'features': ()} | options)

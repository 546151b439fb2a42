"""Training: order, padding, loss, resuming."""

import functools

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclust import training
from jaxclust.autoencoder import Autoencoder
from jaxclust.numerics import InputError

KEY = jax.random.key(0)
MODEL = Autoencoder((8, 8, 1), (4, 2))


def draw_images(num_images, seed=0):
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (num_images, 4, 4, 1))
  return jnp.asarray(blocks.repeat(2, 1).repeat(2, 2).astype(np.uint8))


def train(images, num_steps, *, batch_size, state=None, learning_rate=1e-3):
  """Makes num_steps steps, an epoch at most in each call."""
  state = training.init(KEY, MODEL) if state is None else state
  state = jax.tree.map(jnp.copy, state)  # a step gives up its buffers
  per_epoch = training.steps_per_epoch(len(images), batch_size)
  while num_steps:
    steps = min(num_steps, per_epoch - int(state.step) % per_epoch)
    state = training.train_steps(
      state,
      images,
      KEY,
      steps,
      model=MODEL,
      batch_size=batch_size,
      learning_rate=learning_rate,
    )
    num_steps -= steps
  return state


class PlainAutoencoder(nn.Module):
  """The same network of Flax's own layers."""

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(nn.Conv, kernel_size=(3, 3))
    for channels in (4, 2):
      x = nn.relu(conv(channels)(x))
      x = nn.max_pool(x, (2, 2), (2, 2), 'SAME')
    x = nn.relu(conv(2)(x))
    for channels in (4, 1):
      x = x.repeat(2, axis=1).repeat(2, axis=2)
      x = nn.relu(conv(channels)(x))
    return x


def plain_params(params):
  layers = params['params']
  names = [f'encoder_{i}' for i in range(2)] + [
    f'decoder_{i}' for i in range(3)
  ]
  return {'params': {f'Conv_{i}': layers[n] for i, n in enumerate(names)}}


def test_steps_are_those_of_a_plain_network_and_optax():
  images = draw_images(40)
  state = training.init(KEY, MODEL)
  params = plain_params(state.params)
  adam = optax.adam(1e-2)
  opt_state = adam.init(params)
  order = jax.random.permutation(jax.random.fold_in(KEY, 0), 40)

  @jax.jit
  def step(params, opt_state, batch):
    def loss(params):
      return jnp.square(PlainAutoencoder().apply(params, batch) - batch).mean()

    with jax.numpy_dtype_promotion('standard'):
      value, grads = jax.value_and_grad(loss)(params)
      updates, opt_state = adam.update(grads, opt_state)
      return optax.apply_updates(params, updates), opt_state, value

  losses = []
  for start in range(0, 40, 8):
    batch = images[order[start : start + 8]].astype(jnp.float32) / 255
    params, opt_state, value = step(params, opt_state, batch)
    losses.append(float(value))
  state = train(images, 5, batch_size=8, learning_rate=1e-2, state=state)
  np.testing.assert_allclose(state.loss_sum / 40, np.mean(losses), rtol=1e-4)
  chex.assert_trees_all_close(
    plain_params(state.params), params, rtol=1e-3, atol=1e-4
  )


def test_gradients_are_those_of_a_plain_network():
  pixels = training.as_pixels(draw_images(64))
  params = training.init(KEY, MODEL).params
  weight = jnp.ones(64)

  def plain_loss(params):
    return jnp.square(PlainAutoencoder().apply(params, pixels) - pixels).mean()

  with jax.numpy_dtype_promotion('standard'):
    expected = jax.jit(jax.grad(plain_loss))(plain_params(params))
  loss = functools.partial(training.batch_loss, model=MODEL)
  found, _ = jax.jit(jax.grad(loss, has_aux=True))(params, pixels, weight)
  found, expected = (
    jax.flatten_util.ravel_pytree(tree)[0]
    for tree in (plain_params(found), expected)
  )
  gap = jnp.linalg.norm(found - expected)
  assert gap < 1e-5 * jnp.linalg.norm(expected)


def test_training_lowers_the_loss():
  images = draw_images(256)
  first = train(images, 8, batch_size=32, learning_rate=1e-2)
  last = train(images, 160, batch_size=32, learning_rate=1e-2)
  assert last.loss_sum < 0.7 * first.loss_sum
  evaluated = training.mean_loss(
    last.params, images, model=MODEL, batch_size=50
  )
  np.testing.assert_allclose(evaluated, last.loss_sum / 256, rtol=0.1)


def test_a_batch_that_is_not_full_is_a_smaller_batch():
  """Three images in a batch of eight are three images in a batch of three."""
  images = draw_images(3)
  padded = train(images, 4, batch_size=8)
  exact = train(images, 4, batch_size=3)
  chex.assert_trees_all_close(padded.params, exact.params, atol=1e-6)
  np.testing.assert_allclose(padded.loss_sum, exact.loss_sum, rtol=1e-5)


def test_an_epoch_sees_every_image_once():
  images = draw_images(21)
  state = train(images, 3, batch_size=8, learning_rate=0.0)
  exact = training.mean_loss(state.params, images, model=MODEL, batch_size=7)
  np.testing.assert_allclose(state.loss_sum / 21, exact, rtol=1e-5)


def test_the_order_depends_on_the_epoch_and_the_key_alone():
  images = draw_images(24)
  whole = train(images, 9, batch_size=8)
  part = train(images, 4, batch_size=8)
  resumed = train(images, 5, batch_size=8, state=part)
  chex.assert_trees_all_equal(whole, resumed)


def test_epochs_and_keys_have_orders_of_their_own():
  images = draw_images(24)
  zero = training.init(KEY, MODEL)._replace(step=jnp.int32(0))
  states = [
    train(images, 1, batch_size=8, state=zero),
    train(images, 1, batch_size=8, state=zero._replace(step=jnp.int32(3))),
    training.train_steps(
      jax.tree.map(jnp.copy, zero),
      images,
      jax.random.key(1),
      1,
      model=MODEL,
      batch_size=8,
      learning_rate=1e-3,
    ),
  ]
  losses = {float(state.loss_sum) for state in states}
  assert len(losses) == 3


def test_one_image_trains():
  state = train(draw_images(1), 2, batch_size=1)
  chex.assert_tree_all_finite(state)


def test_black_images_train_without_nan():
  state = train(jnp.zeros((9, 8, 8, 1), jnp.uint8), 6, batch_size=4)
  chex.assert_tree_all_finite(state)


def test_bytes_are_the_same_images_as_floats():
  images = draw_images(20)
  floats = images.astype(jnp.float32) / 255
  chex.assert_trees_all_close(
    train(images, 3, batch_size=8).params,
    train(floats, 3, batch_size=8).params,
    atol=1e-6,
  )


@pytest.mark.parametrize('batch_size', [1, 7, 20, 64])
def test_codes_do_not_depend_on_the_batch(batch_size):
  images = draw_images(20)
  params = training.init(KEY, MODEL).params
  codes = training.encode(params, images, model=MODEL, batch_size=batch_size)
  chex.assert_shape(codes, (20, 8))
  direct = MODEL.apply(params, training.as_pixels(images), method='encode')
  np.testing.assert_allclose(codes, direct, atol=1e-5)


def test_a_new_learning_rate_compiles_nothing():
  images = draw_images(16)
  train(images, 2, batch_size=8, learning_rate=1e-3)
  before = training.train_steps._cache_size()
  train(images, 1, batch_size=8, learning_rate=1e-2)
  assert training.train_steps._cache_size() == before


@pytest.mark.parametrize(
  ('name', 'value'),
  [('num_epochs', 0), ('batch_size', 2.5), ('learning_rate', -1.0)],
)
def test_options_that_cannot_be_used_are_named(name, value):
  options = {'num_epochs': 1, 'batch_size': 8, 'learning_rate': 1e-3}
  with pytest.raises(InputError, match=f'{name} is {value}'):
    training.check_options(**options | {name: value})

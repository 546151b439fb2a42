"""Steps of training against a plain network and Optax."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import METHOD, NETWORK, draw_images, run_of

from jaxclust import encoding, networks, plans, processes, steps
from jaxclust.data import batches
from jaxclust.data.augment import augment, from_options
from jaxclust.defaults import TRAINING
from jaxclust.methods import METHODS, Batch
from jaxclust.methods.autoencoder import reconstruction_errors
from jaxclust.methods.method import _in_parts

pytestmark = pytest.mark.usefixtures('light_compiler')

# The network that is compared with one of Flax's own layers.
CONV = networks.build((8, 8, 1), features=(4, 2))
KEY = jax.random.key(1)  # with which it sees something in every image
IMAGES = jnp.asarray(draw_images(40))
PIXELS = encoding.as_pixels(IMAGES)
CONVOLUTIONS = METHODS['autoencoder'](CONV)


@functools.partial(jax.jit, static_argnums=(1, 2))
def init(keys=KEY[None], optimizer='adam', method=METHOD):
  params = jax.vmap(method.init, (0, None))(keys, None)
  opt_state = jax.vmap(steps.optimizer_of(optimizer).init)(params)
  zeros = jnp.zeros(len(keys))
  return steps.TrainState(params, opt_state, zeros.astype(jnp.int32), zeros)


def rows_of(num_steps, num_images=40, *, batch_size=8, keys=KEY[None]):
  """Rows of batches `[R, S, B]`, epoch after epoch."""
  every = np.arange(num_images, dtype=np.int32)
  epochs = range(-(-num_steps * batch_size // num_images))
  orders = [batches.draw_order(keys, e, every, batch_size) for e in epochs]
  return np.concatenate(orders, axis=1)[:, :num_steps]


def train(
  rows,
  images=IMAGES,
  *,
  state=None,
  keys=KEY[None],
  rate=1e-3,
  method=METHOD,
  optimizer='adam',
  **options,
):
  """Makes a step with each batch of rows, from a state or from the first."""
  state = init(keys, optimizer, method) if state is None else state
  return steps.train_steps(
    jax.tree.map(jnp.copy, state),  # a call gives up its buffers
    images,
    keys,
    rows,
    np.broadcast_to(np.float32(rate), rows.shape[1]),
    method=method,
    optimizer=optimizer,
    **options,
  )


def train_epochs(num_epochs, **options):
  """Trains in calls of an epoch, which is five steps."""
  state = None
  for rows in np.split(rows_of(5 * num_epochs), num_epochs, axis=1):
    state = train(rows, state=state, **options)
  return state


def loss_of(params, method=METHOD):
  errors = encoding.errors(method, run_of(params), IMAGES, 64)
  return float(np.sum(errors))


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


def plain_loss(params, batch):
  return jnp.square(PlainAutoencoder().apply(params, batch) - batch).mean()


def gradient(params, pixels=PIXELS, method=METHOD):
  batch = Batch(pixels[:, None], pixels, jnp.ones(len(pixels)), ())
  loss = functools.partial(method.loss, batch=batch, step=0, pool=None)
  return jax.value_and_grad(loss)(params)


def test_the_network_of_these_tests_learns_from_every_image():
  """Where nothing is positive nothing is learned, and all would be equal."""
  out = jax.jit(CONV.apply)(run_of(init(method=CONVOLUTIONS).params), PIXELS)
  assert (out > 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
  ('name', 'optimizer'),
  [('adam', optax.adam(1e-2)), ('sgd', optax.sgd(1e-2, momentum=0.9))],
)
def test_steps_are_those_of_a_plain_network_and_optax(name, optimizer):
  params = plain_params(run_of(init(method=CONVOLUTIONS).params))
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, batch):
    with jax.numpy_dtype_promotion('standard'):
      value, grads = jax.value_and_grad(plain_loss)(params, batch)
      updates, opt_state = optimizer.update(grads, opt_state)
      return optax.apply_updates(params, updates), opt_state, value

  rows, losses = rows_of(5), []
  for row in rows[0]:
    params, opt_state, value = step(params, opt_state, PIXELS[row])
    losses.append(float(value))
  state = train(rows, rate=1e-2, optimizer=name, method=CONVOLUTIONS)
  np.testing.assert_allclose(state.loss_sum[0], 8 * np.sum(losses), rtol=1e-4)
  chex.assert_trees_all_close(
    plain_params(run_of(state.params)), params, rtol=1e-3, atol=1e-4
  )


def test_sgd_is_momentum_by_hand():
  optimizer = steps.optimizer_of('sgd')
  params, found = jnp.ones(2), []
  state = optimizer.init(params)
  for grad in ([1.0, 0.0], [2.0, 1.0], [-1.0, 0.0]):
    with jax.numpy_dtype_promotion('standard'):
      direction, state = optimizer.update(jnp.array(grad), state, params)
    found.append(direction)
  # Each direction is the gradient and .9 of the direction before.
  np.testing.assert_allclose(found, [[1, 0], [2.9, 1], [1.61, 0.9]], rtol=1e-6)


def test_weights_decay_by_hand():
  optimizer = steps.optimizer_of('sgd', weight_decay=0.1)
  params = jnp.array([2.0, -1.0])
  with jax.numpy_dtype_promotion('standard'):
    found, _ = optimizer.update(
      jnp.array([1.0, 0.0]), optimizer.init(params), params
    )
  np.testing.assert_allclose(found, [1.2, -0.1], rtol=1e-6)


def test_gradients_are_those_of_a_plain_network():
  params = run_of(init(method=CONVOLUTIONS).params)
  with jax.numpy_dtype_promotion('standard'):
    expected = jax.jit(jax.grad(plain_loss))(plain_params(params), PIXELS)
  _, found = jax.jit(functools.partial(gradient, method=CONVOLUTIONS))(params)
  found = jax.tree.map(lambda g: np.asarray(g) / len(PIXELS), found)
  found, expected = (
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for tree in (plain_params(found), expected)
  )
  gap = np.linalg.norm(found - expected)
  assert gap < 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_training_lowers_the_loss():
  state, rows = train_epochs(32, rate=1e-2), rows_of(5)
  first = train(rows, rate=0.0)
  last = train(rows, rate=0.0, state=init()._replace(params=state.params))
  assert float(last.loss_sum[0]) < 0.7 * float(first.loss_sum[0])
  np.testing.assert_allclose(loss_of(state.params), last.loss_sum[0], rtol=1e-4)


@pytest.mark.parametrize('num_images', [1, 11])
def test_a_batch_that_is_not_full_is_a_smaller_batch(num_images):
  rows = rows_of(2, num_images)
  padded, state = train(rows), init()
  for step in range(2):
    row = rows[:, step : step + 1]
    state = train(row[:, :, : int((row >= 0).sum())], state=state)
  chex.assert_tree_all_finite(padded)
  chex.assert_trees_all_close(padded.params, state.params, atol=1e-6)
  np.testing.assert_allclose(padded.loss_sum, state.loss_sum, rtol=1e-5)


@pytest.mark.slow
def test_devices_that_share_batches_make_the_same_steps():
  """Fifteen images are eight for one device and seven for the other."""
  assert jax.device_count() == 2
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('batch',))
  keys = jax.random.split(KEY, 2)
  rows = rows_of(12, batch_size=15, keys=keys)
  drawn = from_options(noise=0.3, max_shift=2.0, max_rotation=10.0)
  alone = train(rows, keys=keys, augmentation=drawn)
  state, images = processes.replicate(mesh, (init(keys), IMAGES))
  shared = train(
    rows, images, mesh=mesh, state=state, keys=keys, augmentation=drawn
  )
  np.testing.assert_allclose(shared.loss_sum, alone.loss_sum, rtol=1e-5)
  chex.assert_trees_all_close(shared.params, alone.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('features', 'batch_size', 'count'),
  [((16, 8, 8), 256, 2), ((16, 8, 8), 32, 1), ((2, 2, 2), 256, 1)],
)
def test_a_small_batch_stays_on_one_device(features, batch_size, count):
  network = networks.build((28, 28, 1), features=features)
  mesh = steps.make_mesh(network.count_operations(), batch_size)
  assert mesh.size == count


def test_dense_networks_have_all_cores_as_one_device():
  network = networks.build((28, 28, 1), name='mlp')
  operations = network.count_operations()
  assert steps.make_mesh(operations, 256).size == 2
  assert steps.make_mesh(operations, 256, network.uses_all_cores).size == 1


@pytest.mark.parametrize(
  ('num_images', 'most'), [(1, 32), (32, 32), (33, 32), (70, 32), (33, 0)]
)
def test_parts_of_a_batch_are_the_batch(num_images, most):
  pixels = encoding.as_pixels(draw_images(num_images))
  losses = functools.partial(
    reconstruction_errors, NETWORK, run_of(init().params)
  )
  batch = Batch(pixels[:, None], pixels, jnp.ones(len(pixels)), ())
  both = jax.jit(lambda batch: (_in_parts(losses, most, batch), losses(batch)))
  np.testing.assert_allclose(*both(batch), rtol=1e-5)


@pytest.mark.slow
def test_at_once_is_one_after_another():
  """What accelerators do, compared here with what CPUs do."""
  params = init(jax.random.split(KEY, 3)).params
  chex.assert_trees_all_close(
    jax.jit(jax.vmap(gradient))(params),
    jax.jit(functools.partial(steps._side_by_side, gradient))(params),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.slow
def test_bfloat16_ends_where_float32_does():
  losses = []
  for dtype in plans.DTYPES.values():
    method = METHODS['autoencoder'](CONV.clone(dtype=dtype))
    state = train_epochs(64, rate=3e-3, method=method)
    chex.assert_tree_all_finite(state)
    chex.assert_type(jax.tree.leaves(state.params), jnp.float32)
    assert state.loss_sum.dtype == jnp.float32
    losses.append(loss_of(state.params, CONVOLUTIONS))
  full, half = losses
  assert half != full
  np.testing.assert_allclose(half, full, rtol=0.02)


def test_bfloat16_maps_are_half_as_large():
  method = METHODS['autoencoder'](CONV.clone(dtype=jnp.bfloat16))
  jaxpr = jax.make_jaxpr(functools.partial(gradient, method=method))(
    run_of(init(method=CONVOLUTIONS).params)
  )
  convolutions = re.findall(r'(\w+)\[[\d,]*\] = conv_general', str(jaxpr))
  assert len(convolutions) > 10
  assert set(convolutions) == {'bf16'}


def test_learning_rates_by_hand():
  options = TRAINING | {'num_epochs': 2, 'learning_rate': 2.0}

  def rates(**own):
    return steps.learning_rates(4, options | own)

  np.testing.assert_array_equal(rates(), np.full(8, 2.0))
  cosine = rates(schedule='cosine')
  expected = 1 + np.cos(np.pi * np.arange(8) / 8)
  np.testing.assert_allclose(cosine, expected, rtol=1e-5)
  warm = rates(schedule='cosine', warmup_epochs=1.0)
  expected = [0, 0.5, 1, 1.5, *(1 + np.cos(np.pi * np.arange(4) / 4))]
  np.testing.assert_allclose(warm, expected, rtol=1e-5)
  warm = rates(warmup_epochs=0.5)
  np.testing.assert_allclose(warm, [0, 1, 2, 2, 2, 2, 2, 2], rtol=1e-6)
  np.testing.assert_allclose(rates(warmup_epochs=2.0), np.arange(8) / 4)


def test_a_step_takes_its_learning_rate():
  rows = rows_of(5)
  alone = train(rows[:, :1], rate=1e-2).params
  found = train(rows, rate=[1e-2, 0, 0, 0, 0]).params
  chex.assert_trees_all_close(found, alone, atol=1e-7)


def test_a_long_gradient_is_shortened():
  """The trace of a momentum is, after a step, the gradient."""
  lengths = []
  for clip_norm in (0.0, 1e3, 1e-3):
    state = train(rows_of(1), optimizer='sgd', clip_norm=clip_norm)
    trace = jax.tree.leaves(state.opt_state[2].trace)
    lengths.append(np.sqrt(sum(np.square(leaf).sum() for leaf in trace)))
  free, loose, tight = lengths
  assert loose == free > 1e-3
  np.testing.assert_allclose(tight, 1e-3, rtol=1e-4)


def test_denoising_is_judged_by_the_clean_image():
  rows, noise = rows_of(1), from_options(noise=0.3)
  state = train(rows, augmentation=noise)
  pixels = np.asarray(PIXELS)[rows[0, 0]]

  @jax.jit
  def views_and_reconstructions(params, pixels):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(KEY, 0), jnp.arange(8)
    )
    noisy, clean = augment(keys, pixels, noise)
    return clean, NETWORK.apply(params, noisy[:, 0])

  clean, found = views_and_reconstructions(run_of(init().params), pixels)
  np.testing.assert_array_equal(clean, pixels)
  errors = np.square(found - pixels)
  np.testing.assert_allclose(
    state.loss_sum[0], errors.mean(axis=(1, 2, 3)).sum(), rtol=1e-5
  )
  assert float(state.loss_sum[0]) != float(train(rows).loss_sum[0])


def test_black_images_train_without_nan():
  state = train(rows_of(5), jnp.zeros_like(IMAGES))
  chex.assert_tree_all_finite(state)


def test_bytes_are_the_same_images_as_floats():
  rows = rows_of(5)
  chex.assert_trees_all_close(
    train(rows).params, train(rows, PIXELS).params, atol=1e-6
  )


def test_a_call_gives_up_the_buffers_of_its_state():
  state = init()
  rates = np.full(5, 1e-3, np.float32)
  steps.train_steps(state, IMAGES, KEY[None], rows_of(5), rates, method=METHOD)
  kernel = state.params['params']['encoder_0']['kernel']
  assert kernel.is_deleted()
  assert not IMAGES.is_deleted()


def test_an_epoch_is_one_loop_whose_length_is_known():
  """On accelerators the host then has no part in it."""
  lowered = steps.train_steps.trace(
    init(), IMAGES, KEY[None], rows_of(5), jnp.ones(5), method=METHOD
  ).lower(lowering_platforms=('cuda',))
  text = lowered.as_text()
  assert text.count('stablehlo.while') == 1
  assert re.search(r'constant dense<5> : tensor<i32>', text)


def test_other_rates_norms_and_noise_compile_nothing():
  def make(scale):
    drawn = from_options(noise=0.1 * scale, max_shift=scale, max_rotation=scale)
    train(rows_of(5), rate=1e-3 * scale, clip_norm=scale, augmentation=drawn)

  make(1.0)
  before = steps.train_steps._cache_size()
  make(2.0)
  assert steps.train_steps._cache_size() == before

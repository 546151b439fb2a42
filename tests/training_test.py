"""Training: order, padding, loss, resuming."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclust import numerics, training
from jaxclust.autoencoder import Autoencoder
from jaxclust.data.augment import Augmentation, Motion, augment
from jaxclust.numerics import InputError

KEY = jax.random.key(1)  # of a network that sees something in every image
MODEL = Autoencoder((8, 8, 1), (4, 2))


def draw_images(num_images, seed=0):
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (num_images, 4, 4, 1))
  return jnp.asarray(blocks.repeat(2, 1).repeat(2, 2).astype(np.uint8))


def rows_of(num_steps, images, *, batch_size, keys=KEY[None], begin=0):
  """Rows of batches `[R, S, B]`, epoch after epoch."""
  per_epoch = training.steps_per_epoch(len(images), batch_size)
  every = jnp.arange(len(images), dtype=jnp.int32)
  end = begin + num_steps
  epochs = range(-(-end // per_epoch))
  orders = [training.draw_order(keys, e, every, batch_size) for e in epochs]
  return jnp.concatenate(orders, axis=1)[:, begin:end]


def train(
  images,
  num_steps,
  *,
  batch_size,
  state=None,
  keys=KEY[None],
  learning_rate=1e-3,
  model=MODEL,
  **options,
):
  """Makes num_steps steps from a state, or from the first."""
  state = training.init(keys, MODEL) if state is None else state
  state = jax.tree.map(jnp.copy, state)  # a step gives up its buffers
  begin = int(state.step[0])
  return training.train_steps(
    state,
    images,
    keys,
    rows_of(num_steps, images, batch_size=batch_size, keys=keys, begin=begin),
    np.full(num_steps, learning_rate, np.float32),
    model=model,
    **options,
  )


def first(tree):
  """The first run's part of a pytree of `[R, ...]`."""
  return jax.tree.map(lambda a: a[0], tree)


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


def test_the_network_of_these_tests_learns_from_every_image():
  """Where nothing is positive nothing is learned, and all else would pass."""
  pixels = training.as_pixels(draw_images(512))
  params = first(training.init(KEY[None], MODEL).params)
  out = MODEL.apply(params, pixels)
  assert (out > 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize('batch_size', [8, 1])
def test_steps_are_those_of_a_plain_network_and_optax(batch_size):
  images = draw_images(40)
  state = training.init(KEY[None], MODEL)
  params = plain_params(first(state.params))
  adam = optax.adam(1e-2)
  opt_state = adam.init(params)

  @jax.jit
  def step(params, opt_state, batch):
    def loss(params):
      return jnp.square(PlainAutoencoder().apply(params, batch) - batch).mean()

    with jax.numpy_dtype_promotion('standard'):
      value, grads = jax.value_and_grad(loss)(params)
      updates, opt_state = adam.update(grads, opt_state)
      return optax.apply_updates(params, updates), opt_state, value

  losses = []
  for rows in rows_of(5, images, batch_size=batch_size)[0]:
    batch = images[rows].astype(jnp.float32) / 255
    params, opt_state, value = step(params, opt_state, batch)
    losses.append(float(value))
  state = train(
    images, 5, batch_size=batch_size, learning_rate=1e-2, state=state
  )
  np.testing.assert_allclose(
    state.loss_sum[0], batch_size * np.sum(losses), rtol=1e-4
  )
  chex.assert_trees_all_close(
    plain_params(first(state.params)), params, rtol=1e-3, atol=1e-4
  )


def test_gradients_are_those_of_a_plain_network():
  pixels = training.as_pixels(draw_images(64))
  params = first(training.init(KEY[None], MODEL).params)
  weight = jnp.ones(64)

  def plain_loss(params):
    return jnp.square(PlainAutoencoder().apply(params, pixels) - pixels).mean()

  with jax.numpy_dtype_promotion('standard'):
    expected = jax.jit(jax.grad(plain_loss))(plain_params(params))
  gradient = jax.jit(training._gradient, static_argnames='model')
  _, found = gradient(params, pixels, pixels, weight, MODEL)
  found = jax.tree.map(lambda g: g / 64, found)
  found, expected = (
    jax.flatten_util.ravel_pytree(tree)[0]
    for tree in (plain_params(found), expected)
  )
  gap = jnp.linalg.norm(found - expected)
  assert gap < 1e-5 * jnp.linalg.norm(expected)


@pytest.mark.slow
def test_training_lowers_the_loss():
  images = draw_images(256)
  start = train(images, 8, batch_size=32, learning_rate=1e-2)
  later = train(images, 152, batch_size=32, learning_rate=1e-2, state=start)
  last = train(
    images,
    8,
    batch_size=32,
    learning_rate=1e-2,
    state=training.start_epoch(later),
  )
  assert last.loss_sum[0] < 0.7 * start.loss_sum[0]
  evaluated = training.sum_losses(
    last.params, images, model=MODEL, batch_size=50
  )
  np.testing.assert_allclose(evaluated, last.loss_sum, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('num_images', [1, 3])
def test_a_batch_that_is_not_full_is_a_smaller_batch(num_images):
  """Three images in a batch of eight are three images in a batch of three."""
  images = draw_images(num_images)
  padded = train(images, 4, batch_size=8)
  exact = train(images, 4, batch_size=num_images)
  chex.assert_trees_all_close(padded.params, exact.params, atol=1e-6)
  np.testing.assert_allclose(padded.loss_sum, exact.loss_sum, rtol=1e-5)


@pytest.mark.slow
def test_the_last_batch_of_an_epoch_may_be_smaller():
  images = draw_images(11)
  rows = rows_of(2, images, batch_size=8)
  padded = train(images, 2, batch_size=8)
  state = training.init(KEY[None], MODEL)
  for part in (rows[:, :1], rows[:, 1:, :3]):
    rates = np.full(1, 1e-3, np.float32)
    state = training.train_steps(
      state, images, KEY[None], part, rates, model=MODEL
    )
  chex.assert_trees_all_close(padded.params, state.params, atol=1e-6)
  np.testing.assert_allclose(padded.loss_sum, state.loss_sum, rtol=1e-5)


def test_an_epoch_sees_every_image_once():
  images = draw_images(21)
  order = rows_of(3, images, batch_size=8, keys=jax.random.split(KEY, 2))
  chex.assert_shape(order, (2, 3, 8))
  for rows in np.asarray(order).reshape(2, -1):
    assert sorted(rows) == [-1, -1, -1, *range(21)]
  state = train(images, 3, batch_size=8, learning_rate=0.0)
  exact = training.sum_losses(state.params, images, model=MODEL, batch_size=7)
  np.testing.assert_allclose(state.loss_sum, exact, rtol=1e-5)


@pytest.mark.slow
def test_a_training_goes_on_where_it_was():
  images = draw_images(24)
  options = {
    'batch_size': 8,
    'augmentation': Augmentation(0.1, Motion(1.0, 10.0)),
  }
  whole = train(images, 9, **options)
  part = train(images, 4, **options)
  resumed = train(images, 5, state=part, **options)
  chex.assert_trees_all_equal(whole, resumed)


def test_epochs_and_keys_have_orders_of_their_own():
  keys = jax.random.split(KEY, 2)
  every = jnp.arange(24, dtype=jnp.int32)
  orders = [training.draw_order(keys, epoch, every, 24) for epoch in (0, 1)]
  seen = {tuple(rows.tolist()) for order in orders for rows in order[:, 0]}
  assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [8, 15])
@pytest.mark.parametrize(
  'drawn', [Augmentation(), Augmentation(0.3, Motion(2.0, 10.0))]
)
def test_devices_that_share_batches_make_the_same_steps(drawn, batch_size):
  """Fifteen images are eight for one device and seven for the other."""
  assert jax.device_count() == 2
  images = draw_images(70)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('batch',))
  keys = jax.random.split(KEY, 2)
  options = {'batch_size': batch_size, 'keys': keys, 'augmentation': drawn}
  alone = train(images, 12, **options)
  state, there = training.replicate(mesh, (training.init(keys, MODEL), images))
  shared = train(there, 12, mesh=mesh, state=state, **options)
  np.testing.assert_allclose(shared.loss_sum, alone.loss_sum, rtol=1e-5)
  chex.assert_trees_all_close(shared.params, alone.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('features', 'batch_size', 'count'),
  [((16, 8, 8), 256, 2), ((16, 8, 8), 32, 1), ((2, 2, 2), 256, 1)],
)
def test_a_small_batch_stays_on_one_device(features, batch_size, count):
  model = Autoencoder((28, 28, 1), features)
  assert training.make_mesh(model, batch_size).size == count


@pytest.mark.parametrize('batch_size', [1, 31, 32, 33, 70])
def test_parts_of_a_batch_are_the_batch(batch_size):
  images = draw_images(batch_size)
  pixels = training.as_pixels(images)
  params = first(training.init(KEY[None], MODEL).params)
  losses = functools.partial(training.image_losses, params, model=MODEL)
  np.testing.assert_allclose(
    training._in_parts(losses, pixels, pixels),
    losses(pixels, pixels),
    rtol=1e-5,
  )


@pytest.mark.slow
def test_networks_side_by_side_are_networks_alone():
  images = draw_images(40)
  keys = jax.random.split(KEY, 3)
  together = train(images, 10, batch_size=8, keys=keys)
  for run in range(3):
    alone = train(images, 10, batch_size=8, keys=keys[run : run + 1])
    np.testing.assert_array_equal(alone.loss_sum[0], together.loss_sum[run])
    own = jax.tree.map(lambda a, run=run: a[run], together.params)
    chex.assert_trees_all_equal(first(alone.params), own)
  assert len(set(together.loss_sum.tolist())) == 3


@pytest.mark.slow
def test_at_once_is_one_after_another():
  """What accelerators do, compared here with what CPUs do."""
  images = draw_images(24)
  params = training.init(jax.random.split(KEY, 3), MODEL).params
  pixels = training.as_pixels(images)
  weight = jnp.ones(24)

  def gradient(params):
    return training._gradient(params, pixels, pixels, weight, MODEL)

  chex.assert_trees_all_close(
    jax.jit(jax.vmap(gradient))(params),
    jax.jit(functools.partial(numerics.side_by_side, gradient))(params),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.slow
def test_bfloat16_ends_where_float32_does():
  images = draw_images(512)
  losses = []
  for dtype in training.DTYPES.values():
    model = MODEL.clone(dtype=dtype)
    state = train(images, 320, batch_size=32, learning_rate=3e-3, model=model)
    chex.assert_tree_all_finite(state)
    chex.assert_type(jax.tree.leaves(state.params), jnp.float32)
    assert state.loss_sum.dtype == jnp.float32
    losses.append(
      training.sum_losses(state.params, images, model=MODEL, batch_size=64)
    )
  full, half = losses
  assert half != full
  np.testing.assert_allclose(half, full, rtol=0.02)


def test_bfloat16_maps_are_half_as_large():
  model = MODEL.clone(dtype=jnp.bfloat16)
  params = first(training.init(KEY[None], MODEL).params)
  pixels = training.as_pixels(draw_images(4))
  weight = jnp.ones(4)
  jaxpr = jax.make_jaxpr(training._gradient, static_argnums=4)(
    params, pixels, pixels, weight, model
  )
  convolutions = re.findall(r'(\w+)\[[\d,]*\] = conv_general', str(jaxpr))
  assert len(convolutions) > 10
  assert set(convolutions) == {'bf16'}


def test_learning_rates_by_hand():
  rates = functools.partial(training.learning_rates, 8, 4, learning_rate=2.0)
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
  images = draw_images(16)
  rows = rows_of(2, images, batch_size=8)

  def final(rates):
    return training.train_steps(
      training.init(KEY[None], MODEL),
      images,
      KEY[None],
      rows,
      np.asarray(rates, np.float32),
      model=MODEL,
    ).params

  one = train(images, 1, batch_size=8, learning_rate=1e-2).params
  chex.assert_trees_all_close(final([1e-2, 0.0]), one, atol=1e-7)


@pytest.mark.slow
def test_a_long_gradient_is_shortened():
  """Adam hardly notices a factor, but its first moment does."""
  images = draw_images(64)
  moments = []
  for clip_norm in (0.0, 1e3, 1e-3):
    state = train(images, 1, batch_size=64, clip_norm=clip_norm)
    moments.append(float(optax.tree.norm(state.opt_state[1].mu)))
  free, loose, tight = moments
  assert loose == free > 0.1 * 1e-3
  np.testing.assert_allclose(tight, 0.1 * 1e-3, rtol=1e-4)


@pytest.mark.slow
def test_denoising_is_judged_by_the_clean_image():
  """With all noise and no rate, the loss is that of the noisy images."""
  images = draw_images(64)
  state = train(images, 1, batch_size=64, augmentation=Augmentation(noise=0.3))
  plain = train(images, 1, batch_size=64)
  params = first(training.init(KEY[None], MODEL).params)
  rows = rows_of(1, images, batch_size=64)[0, 0]
  pixels = training.as_pixels(images[rows])
  keys = jax.vmap(
    functools.partial(jax.random.fold_in, jax.random.fold_in(KEY, 0))
  )(jnp.arange(64))
  noisy, clean = augment(keys, pixels, Augmentation(noise=0.3))
  np.testing.assert_array_equal(clean, pixels)
  errors = jnp.square(MODEL.apply(params, noisy) - pixels)
  np.testing.assert_allclose(
    state.loss_sum[0], errors.mean(axis=(1, 2, 3)).sum(), rtol=1e-5
  )
  assert state.loss_sum[0] != plain.loss_sum[0]


def test_the_best_parameters_are_those_of_the_lowest_loss():
  best = training.no_best({'a': jnp.zeros((2, 3))})
  course = [
    # epoch, losses of two runs
    (1, [3.0, 5.0]),
    (2, [2.0, 4.0]),
    (3, [2.5, 4.5]),
    (4, [2.5, 4.5]),
    (5, [1.0, 3.0]),
  ]
  for epoch, losses in course:
    params = {'a': jnp.full((2, 3), float(epoch))}
    best = training.keep_best(best, params, jnp.array(losses), epoch, 3)
  np.testing.assert_array_equal(best.epoch, [5, 5])
  np.testing.assert_array_equal(best.params['a'][:, 0], [5, 5])
  np.testing.assert_array_equal(best.loss, [1, 3])


def test_a_run_without_patience_left_takes_no_better_parameters():
  best = training.no_best({'a': jnp.zeros((2, 3))})
  for epoch, losses in enumerate([[1, 9], [2, 8], [2, 7], [0.5, 6]], 1):
    params = {'a': jnp.full((2, 3), float(epoch))}
    losses = jnp.array(losses, jnp.float32)
    best = training.keep_best(best, params, losses, epoch, 2)
  np.testing.assert_array_equal(best.epoch, [1, 4])
  np.testing.assert_array_equal(best.loss, [1, 6])


def test_a_nan_is_no_best():
  best = training.no_best({'a': jnp.zeros((1, 3))})
  nan = jnp.array([jnp.nan])
  best = training.keep_best(best, {'a': jnp.ones((1, 3))}, nan, 1, 2)
  assert best.epoch == 0


def test_parameters_that_are_not_finite_are_found():
  params = {'a': jnp.zeros((3, 2)), 'b': jnp.zeros((3, 2, 2))}
  params['b'] = params['b'].at[1, 0, 0].set(jnp.inf)
  found = training.is_finite(params)
  np.testing.assert_array_equal(found, [True, False, True])


@pytest.mark.parametrize(('share', 'count'), [(0.0, 0), (0.1, 10), (0.25, 25)])
def test_images_held_out_are_spread_evenly(share, count):
  held = training.held_out(100, share)
  assert held.sum() == count
  gaps = np.diff(np.flatnonzero(held))
  assert count == 0 or set(gaps) == {1 / share}


def test_one_image_trains():
  state = train(draw_images(1), 2, batch_size=1)
  chex.assert_tree_all_finite(state)


def test_black_images_train_without_nan():
  state = train(jnp.zeros((9, 8, 8, 1), jnp.uint8), 6, batch_size=4)
  chex.assert_tree_all_finite(state)


@pytest.mark.parametrize('shape', [(9, 28, 28, 1), (3, 5, 7, 3)])
def test_bytes_are_the_same_points_as_floats(shape):
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  images.flat[:256] = np.arange(256)[: images.size]
  floats = images.astype(np.float32) / 255
  points = training.as_points(jnp.asarray(images))
  np.testing.assert_array_equal(points, floats.reshape(len(floats), -1))
  np.testing.assert_array_equal(
    training.as_points(jnp.asarray(floats)), floats.reshape(len(floats), -1)
  )
  assert points.dtype == jnp.float32


@pytest.mark.slow
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
  params = first(training.init(KEY[None], MODEL).params)
  codes = training.encode(params, images, model=MODEL, batch_size=batch_size)
  chex.assert_shape(codes, (20, 8))
  direct = MODEL.apply(params, training.as_pixels(images), method='encode')
  np.testing.assert_allclose(codes, direct, atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 8, 20, 64])
def test_losses_do_not_depend_on_the_batch(batch_size):
  images = draw_images(20)
  params = training.init(KEY[None], MODEL).params
  found = training.sum_losses(
    params, images, model=MODEL, batch_size=batch_size
  )
  pixels = training.as_pixels(images)
  losses = training.image_losses(first(params), pixels, pixels, model=MODEL)
  np.testing.assert_allclose(found, [losses.sum()], rtol=1e-5)


def test_codes_are_decoded_in_batches():
  images = draw_images(20)
  params = first(training.init(KEY[None], MODEL).params)
  params = jax.tree.map(lambda a: a + 0.1, params)  # so that relus are passed
  codes = training.encode(params, images, model=MODEL, batch_size=7)
  out = training.decode(params, codes, model=MODEL, batch_size=7)
  direct = MODEL.apply(params, training.as_pixels(images))
  assert out.std() > 0.01
  np.testing.assert_allclose(out, direct, rtol=1e-5)


def test_a_call_gives_up_the_buffers_of_its_state():
  images = draw_images(16)
  state = training.init(KEY[None], MODEL)
  rates = np.full(2, 1e-3, np.float32)
  rows = rows_of(2, images, batch_size=8)
  training.train_steps(state, images, KEY[None], rows, rates, model=MODEL)
  kernel = state.params['params']['encoder_0']['kernel']
  assert kernel.is_deleted()
  assert not images.is_deleted()


def test_an_epoch_is_one_loop_whose_length_is_known():
  """On accelerators the host then has no part in it."""
  state = jax.eval_shape(lambda: training.init(KEY[None], MODEL))
  images = jax.ShapeDtypeStruct((40, 8, 8, 1), jnp.uint8)
  rows = jax.ShapeDtypeStruct((1, 5, 8), jnp.int32)
  rates = jax.ShapeDtypeStruct((5,), jnp.float32)
  lowered = training.train_steps.trace(
    state, images, KEY[None], rows, rates, model=MODEL
  ).lower(lowering_platforms=('cuda',))
  text = lowered.as_text()
  assert text.count('stablehlo.while') == 1
  assert re.search(r'constant dense<5> : tensor<i32>', text)


def test_other_rates_norms_and_noise_compile_nothing():
  images = draw_images(16)

  def options(scale):
    return {
      'batch_size': 8,
      'learning_rate': 1e-3 * scale,
      'clip_norm': scale,
      'augmentation': Augmentation(0.1 * scale, Motion(scale, scale)),
    }

  train(images, 2, **options(1.0))
  before = training.train_steps._cache_size()
  train(images, 2, **options(2.0))
  assert training.train_steps._cache_size() == before


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('num_epochs', 0),
    ('batch_size', 2.5),
    ('learning_rate', -1.0),
    ('schedule', "'linear'"),
    ('warmup_epochs', 1.5),
    ('clip_norm', -1.0),
    ('patience', -1),
    ('holdout', 0.6),
    ('dtype', "'float16'"),
  ],
)
def test_options_that_cannot_be_used_are_named(name, value):
  options = {'num_epochs': 1, 'batch_size': 8, 'learning_rate': 1e-3}
  with pytest.raises(InputError, match=f'{name} is {value}'):
    training.check_options(
      **options | {name: value.strip("'") if isinstance(value, str) else value}
    )

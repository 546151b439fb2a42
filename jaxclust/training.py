"""Training of the autoencoder by Adam on the mean squared error of pixels.

The images stay on the device as they are (uint8 or float) and many steps run in
one device call, so that only a loss crosses to the host. The order of an epoch
is drawn from `fold_in(key, epoch)` and depends on nothing else: a run that is
taken up at any step goes on as if it had never stopped.

Axes: N images, B batch, H height, W width, C channels, D numbers of the code.

Reference:
  Kingma and Ba (2015), Adam: a method for stochastic optimization,
    https://arxiv.org/abs/1412.6980
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxclust import numerics
from jaxclust.autoencoder import Autoencoder

# Adam's direction; the learning rate is applied apart, so that it is data.
_ADAM = optax.scale_by_adam()


class TrainState(NamedTuple):
  """What the next step needs, and the loss of the epoch so far."""

  params: Any  # the network's variables
  opt_state: optax.OptState
  step: jax.Array  # [] int32, over all epochs
  loss_sum: jax.Array  # [] sum of the losses of this epoch's images


@functools.partial(jax.jit, static_argnames='model')
def init(key: jax.Array, model: Autoencoder) -> TrainState:
  """Draws the network's parameters."""
  params = model.init(key, jnp.zeros((1, *model.image_shape)))
  return TrainState(
    params, _ADAM.init(params), jnp.zeros((), jnp.int32), jnp.zeros(())
  )


def check_options(
  *, num_epochs: int, batch_size: int, learning_rate: float
) -> None:
  """Checks the options of a training.

  Raises:
    InputError: if they are out of range.
  """
  numerics.check_count('num_epochs', num_epochs)
  numerics.check_count('batch_size', batch_size)
  numerics.check_number('learning_rate', learning_rate)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
  """Steps in which every image is seen once; the last may be smaller."""
  return -(-num_images // batch_size)


@functools.partial(
  jax.jit, static_argnames=('model', 'batch_size'), donate_argnames='state'
)
def train_steps(
  state: TrainState,
  images: jax.Array,
  key: jax.Array,
  num_steps: int,
  *,
  model: Autoencoder,
  batch_size: int,
  learning_rate: float,
) -> TrainState:
  """Makes num_steps steps within one epoch.

  Args:
    state: where to go on; its buffers are given up.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    key: the key of the whole training.
    num_steps: at most as many as the epoch has left.
    model: the network.
    batch_size: B; the last batch of an epoch is filled with images of weight 0.
    learning_rate: of Adam.

  Returns:
    The state after the steps.
  """
  num_images = images.shape[0]
  num_batches = steps_per_epoch(num_images, batch_size)
  epoch = state.step // num_batches
  order = jax.random.permutation(jax.random.fold_in(key, epoch), num_images)
  order = jnp.pad(order, (0, num_batches * batch_size - num_images))

  def body(_, state):
    start = state.step % num_batches * batch_size
    batch = images[lax.dynamic_slice_in_dim(order, start, batch_size)]
    weight = (start + jnp.arange(batch_size) < num_images).astype(jnp.float32)
    loss = functools.partial(batch_loss, model=model)
    (_, total), grads = jax.value_and_grad(loss, has_aux=True)(
      state.params, as_pixels(batch), weight
    )
    with jax.numpy_dtype_promotion('standard'):  # as Optax needs it
      updates, opt_state = _ADAM.update(grads, state.opt_state)
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    return TrainState(
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      step=state.step + 1,
      loss_sum=jnp.where(start == 0, 0, state.loss_sum) + total,
    )

  return lax.fori_loop(0, num_steps, body, state)


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def mean_loss(
  params: Any, images: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Mean loss of images `[N, H, W, C]`."""

  def part(images, weight):
    return batch_loss(params, as_pixels(images), weight, model=model)[1]

  weight = jnp.ones(images.shape[0])
  total = numerics.sum_blocks(part, images, weight, batch_size)
  return total / images.shape[0]


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def encode(
  params: Any, images: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Codes `[N, D]` of images `[N, H, W, C]`, in batches."""
  return numerics.map_blocks(
    lambda images: model.apply(params, as_pixels(images), method='encode'),
    images,
    batch_size,
  )


def batch_loss(
  params: Any, pixels: jax.Array, weight: jax.Array, *, model: Autoencoder
) -> tuple[jax.Array, jax.Array]:
  """Weighted mean and weighted sum of the images' mean squared errors."""
  errors = jnp.square(model.apply(params, pixels) - pixels)
  total = jnp.vdot(weight, errors.mean(axis=(1, 2, 3)))
  return total / weight.sum(), total


def as_points(images: jax.Array) -> jax.Array:
  """Pixels `[N, H W C]` of images `[N, H, W, C]`, as `as_pixels` has them."""
  return as_pixels(images).reshape(len(images), -1)


def as_pixels(images: jax.Array) -> jax.Array:
  """Images as floats; bytes 0 to 255 become 0 to 1."""
  pixels = numerics.as_float(images)
  return pixels / 255 if images.dtype == jnp.uint8 else pixels

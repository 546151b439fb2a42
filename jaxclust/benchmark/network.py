"""Contests of the network: an epoch of its training, and each layer alone.

Axes: N images, H height, W width, C channels, B batch, R runs.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks, layers, networks, steps
from jaxclust.benchmark import peers
from jaxclust.benchmark.contest import OURS, Contest, Group, Task
from jaxclust.data.batches import draw_order
from jaxclust.methods.autoencoder import autoencoder
from jaxclust.plans import DTYPES

# Calls of a layer in a task.
_CALLS = 20

# Dtype of activations -> relative tolerance of the losses.
_TOLERANCES = {'float32': 1e-3, 'bfloat16': 2e-2}


def _check(image_shape, features, batch_size, learning_rate, dtype, num_seeds):
  del image_shape
  networks.check_options(name='conv', features=features)
  checks.check_count('batch_size', batch_size)
  checks.check_number('learning_rate', learning_rate)
  checks.check_choice('dtype', dtype, _TOLERANCES)
  checks.check_count('num_seeds', num_seeds)


def _training_contests(
  key, images, features, batch_size, learning_rate, dtype, num_seeds
):
  """An epoch of networks side by side, each with its own start and order.

  The peers train the first network alone, always in the order of its first
  epoch.
  """
  network = networks.build(images.shape[1:], features=features)
  keys = jax.random.split(key, num_seeds)
  numbers = jnp.arange(len(images), dtype=jnp.int32)
  order_of = jax.jit(lambda epoch: draw_order(keys, epoch, numbers, batch_size))
  order = np.asarray(order_of(0))[0]
  state = _first_state(network, keys)
  convolutions = network.convolutions(state.params)
  given = peers.Training(
    np.asarray(images)[order[order >= 0]],
    [[np.asarray(c[n])[0] for n in ('kernel', 'bias')] for c in convolutions],
    len(network.features),
    batch_size,
    learning_rate,
  )
  mesh = steps.make_mesh(network.count_operations(), batch_size)
  state, shared = steps.replicate(mesh, (state, images))
  epochs = itertools.count()

  def train():
    nonlocal state
    state = steps.train_steps(
      state._replace(loss_sum=jnp.zeros_like(state.loss_sum)),
      shared,
      keys,
      order_of(next(epochs)),
      np.full(len(order), learning_rate, np.float32),
      method=autoencoder(network.clone(dtype=DTYPES[dtype])),
      mesh=mesh,
    )
    loss = float(state.loss_sum[0]) / len(images)
    return lambda: loss

  together = f', {num_seeds} side by side, each' if num_seeds > 1 else ''
  yield Contest(
    f'autoencoder, {len(images):,} images, batches of {batch_size}, {dtype}, '
    f'an epoch{together}',
    {OURS: Task(train, num_seeds), **peers.tasks('training', given)},
    tolerance=_TOLERANCES[dtype],
    operations=3 * network.count_operations() * len(images),
    numbers=images.size / 4,
  )


def _first_state(network, keys):
  method = autoencoder(network)
  params = jax.vmap(lambda key: method.init(key, None))(keys)
  opt_state = jax.vmap(steps.optimizer_of('adam').init)(params)
  zeros = jnp.zeros(len(keys))
  return steps.TrainState(params, opt_state, zeros.astype(jnp.int32), zeros)


class _Layer(NamedTuple):
  """A layer of the network, and what it is given."""

  name: str
  function: Callable  # arguments -> output
  shapes: dict[str, tuple[int, ...]]  # of its arguments
  operations: float  # of its plain form


def _layers(network, batch_size) -> Iterator[_Layer]:
  """The layers of the network, from the images to the images."""
  sizes = network.level_sizes()
  channels = [network.image_shape[-1], *network.features]
  for i, (size, pair) in enumerate(
    zip(sizes, itertools.pairwise(channels), strict=False)
  ):
    yield _convolution(f'encoder {i}', batch_size, size, size, *pair)
    yield _Layer(
      f'encoder {i}, relu and pool {_by(size)} x {pair[1]}',
      layers.relu_pool,
      {'input': (batch_size, *size, pair[1]), 'bias': pair[1:]},
      0,
    )
  channels = [channels[-1], *reversed(channels[1:]), channels[0]]
  sizes = [sizes[-1], *reversed(sizes)]
  for i, (pair, size) in enumerate(
    zip(itertools.pairwise(channels), itertools.pairwise(sizes), strict=True)
  ):
    yield _convolution(f'decoder {i}', batch_size, *size, *pair)


def _convolution(name, batch_size, size, size_out, channels_in, channels_out):
  def upsampled(x, kernel):
    return layers.upsample_conv(x, kernel, size_out)

  return _Layer(
    f'{name}, {_by(size)} x {channels_in} to {_by(size_out)} x {channels_out}',
    layers.conv if size == size_out else upsampled,
    {
      'input': (batch_size, *size, channels_in),
      'kernel': (3, 3, channels_in, channels_out),
    },
    18 * batch_size * math.prod(size_out) * channels_in * channels_out,
  )


def _by(size):
  return ' x '.join(map(str, size))


def _layer_contests(key, images, features, batch_size, **options):
  """Where an epoch's time goes: each layer alone, forward and backward."""
  del options
  network = networks.build(images.shape[1:], features=features)
  for number, layer in enumerate(_layers(network, batch_size)):
    arguments = [
      jax.random.normal(jax.random.fold_in(key, i), shape)
      for i, shape in enumerate(layer.shapes.values())
    ]
    yield _layer_contest(layer, 'forward', layer.function, arguments)
    output = jax.eval_shape(layer.function, *arguments)
    grad = jax.random.normal(key, output.shape)
    for i, name in enumerate(layer.shapes):
      if number or name != 'input':  # images take no gradient
        function = functools.partial(_gradient, layer.function, i)
        part = f'gradient of its {name}'
        yield _layer_contest(layer, part, function, [grad, *arguments])


def _gradient(function, place, grad, *arguments):
  return jax.vjp(function, *arguments)[1](grad)[place]


def _layer_contest(layer, part, function, arguments):
  compiled = jax.jit(function)

  def run():
    for _ in range(_CALLS):
      result = compiled(*arguments)
    jax.block_until_ready(result)
    return lambda: 0.0

  like = jax.eval_shape(function, *arguments)
  return Contest(
    f'{layer.name}, {part}',
    {OURS: Task(run, _CALLS)},
    tolerance=0.0,
    operations=layer.operations,
    numbers=like.size + sum(a.size for a in arguments),
  )


def _num_layer_contests(features, **options):
  del options
  num_levels = len(networks.build((1, 1, 1), features=features).features)
  return 3 * (3 * num_levels + 1) - 1


TRAINING = Group(_check, lambda **options: 1, _training_contests)
LAYERS = Group(_check, _num_layer_contests, _layer_contests)

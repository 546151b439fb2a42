"""Contests of the network: an epoch of its training, and each layer alone.

Axes: N images, H height, W width, C channels, B batch, R runs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks, networks, plans, training
from jaxclust.benchmark import peers
from jaxclust.benchmark.contest import OURS, Contest, Task
from jaxclust.data.batches import draw_order
from jaxclust.defaults import TRAINING
from jaxclust.methods.autoencoder import autoencoder

# Calls of a layer in a task.
_CALLS = 20

# What is measured of a layer: the function, and the gradient of each argument.
_PARTS = ('forward', 'gradient of its parameters', 'gradient of its input')

# Dtype of activations -> relative tolerance of the losses.
_TOLERANCES = {'float32': 1e-3, 'bfloat16': 2e-2}

# More epochs than a contest has turns.
_EPOCHS = 1000


def plan_training(
  image_shape: Sequence[int],
  *,
  features: Sequence[int],
  num_seeds: int,
  **options: Any,
) -> list[Callable]:
  """An epoch of networks side by side, each with its own start and order.

  The peers train the first network alone, always in the order of its first
  epoch. Options are those of `defaults.TRAINING`.
  """
  networks.check_options(name='conv', features=features)
  checks.check_count('num_seeds', num_seeds)
  network = networks.build(image_shape[1:], features=features)
  options = TRAINING | {'num_epochs': _EPOCHS} | options
  plans.check_options(image_shape[0], autoencoder(network), options)
  return [functools.partial(_training, network, num_seeds, options)]


def _training(network, num_seeds, options, key, images):
  keys = jax.random.split(key, num_seeds)
  plan = plans.plan(autoencoder, network, images, None, keys, options)
  course = training.start(plan, training.blank(plan))
  convolutions = network.convolutions(course.state.params)
  order = jax.jit(draw_order, static_argnums=3)(
    plan.orders, 0, plan.numbers, options['batch_size']
  )
  order = np.asarray(order[0]).ravel()
  others = peers.tasks(
    'training',
    np.asarray(images)[order[order >= 0]],
    [[np.asarray(c[n][0]) for n in ('kernel', 'bias')] for c in convolutions],
    options['batch_size'],
    options['learning_rate'],
  )
  calls = training.run(plan, course)

  def train():
    ended = next(now for now in calls if now.losses is not None)
    return lambda: float(ended.losses['train_loss'][0])

  dtype = options['dtype']
  together = f', {num_seeds} side by side, each' if num_seeds > 1 else ''
  return Contest(
    f'autoencoder, {len(images):,} images, batches of '
    f'{options["batch_size"]}, {dtype}, an epoch{together}',
    {OURS: Task(train, num_seeds), **others},
    tolerance=_TOLERANCES[dtype],
    operations=3 * network.count_operations() * len(images),
    numbers=images.size / 4,
  )


def plan_layers(
  image_shape: Sequence[int],
  *,
  features: Sequence[int],
  batch_size: int,
  **options: Any,
) -> list[Callable]:
  """Where an epoch's time goes: each layer alone, forward and backward.

  A layer is a convolution with the bias, pooling or upsampling that go with it.
  """
  network = networks.build(image_shape[1:], features=features)
  found = {}

  def note(call, arguments, options, context):
    layer = context.module
    if isinstance(layer, networks.Conv):
      x, *rest = arguments
      found[layer.name] = layer.features, x.shape, rest, options
    return call(*arguments, **options)

  shape = batch_size, *image_shape[1:]
  with nn.intercept_methods(note):
    jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(shape)))
  return [
    functools.partial(_layer, name, part, *found[name])
    for name in found
    for part in _PARTS
    if (name, part) != ('encoder_0', _PARTS[2])  # images take no gradient
  ]


def _layer(name, part, features, shape, rest, options, key, images):
  layer = networks.Conv(features)

  def forward(params, x):
    return layer.apply(params, x, *rest, **options)

  def backward(params, x, grad):
    return jax.vjp(forward, params, x)[1](grad)[_PARTS.index(part) - 1]

  x = jax.random.normal(key, shape)
  params = layer.init(key, x, *rest, **options)
  output = forward(params, x)
  arguments, compiled = (params, x), jax.jit(forward)
  if part != 'forward':
    grad = jax.random.normal(key, output.shape)
    arguments, compiled = (params, x, grad), jax.jit(backward)

  def run():
    for _ in range(_CALLS):
      result = compiled(*arguments)
    jax.block_until_ready(result)
    return lambda: 0.0

  passed = jax.tree.leaves((arguments, jax.eval_shape(compiled, *arguments)))
  batch_size, height, width, channels = shape
  height, width = rest[0] if rest else (height, width)
  sides = [' x '.join(map(str, a.shape[1:])) for a in (x, output)]
  return Contest(
    f'{name.replace("_", " ")}, {" to ".join(sides)}, {part}',
    {OURS: Task(run, _CALLS)},
    tolerance=0.0,
    # Of the plain convolution, behind any upsampling.
    operations=18 * batch_size * height * width * channels * features,
    numbers=sum(a.size for a in passed),
  )

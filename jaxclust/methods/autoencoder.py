"""An autoencoder: the mean squared error of the pixels it reconstructs.

Axes: B batch, H height, W width, C channels.

Reference:
  Hinton and Salakhutdinov (2006), Reducing the dimensionality of data with
    neural networks, https://doi.org/10.1126/science.1127647
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclust.methods.method import Batch, Method


@functools.cache
def autoencoder(network: nn.Module) -> Method:
  """The method of a network; it has no options."""

  def init(key, previous):
    if previous is not None:
      return previous
    return network.init(key, jnp.zeros((1, *network.image_shape)))

  def loss(params, batch):
    return reconstruction_errors(network, params, batch)

  return Method(
    init=init,
    loss=loss,
    embed=functools.partial(network.apply, method='encode'),
    decode=functools.partial(network.apply, method='decode'),
    operations=network.count_operations(),
    code_size=network.code_size(),
  )


def reconstruction_errors(
  network: nn.Module, params: Any, batch: Batch
) -> jax.Array:
  """Mean squared errors `[B]` of the reconstructions of a batch."""
  errors = jnp.square(network.apply(params, batch.seen) - batch.wanted)
  return errors.mean(axis=(1, 2, 3))

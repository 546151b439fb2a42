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

from jaxclust.errors import InputError
from jaxclust.methods.method import Batch, Method, per_image


@functools.cache
def autoencoder(network: nn.Module) -> Method:
  """The method of a network; it has no options."""

  def check(num_images):
    del num_images
    check_decoder(network)

  def init(key, previous):
    if previous is not None:
      return previous
    return network.init(key, jnp.zeros((1, *network.image_shape)))

  return Method(
    init=init,
    loss=per_image(functools.partial(reconstruction_errors, network), network),
    embed=functools.partial(network.apply, method='encode'),
    decode=functools.partial(network.apply, method='decode'),
    operations=network.count_operations(),
    code_size=network.code_size(),
    check=check,
  )


def check_decoder(network: nn.Module) -> None:
  """Checks that a network can be trained to reconstruct images.

  Raises:
    InputError: if it only encodes them.
  """
  if not hasattr(network, 'decode'):
    raise InputError(
      f'the network {type(network).__name__} only encodes: set network.name to '
      'conv or mlp, which decode too'
    )


def reconstruction_errors(
  network: nn.Module, params: Any, batch: Batch
) -> jax.Array:
  """Mean squared errors `[B]` of the reconstructions of a batch."""
  errors = jnp.square(network.apply(params, batch.views[:, 0]) - batch.wanted)
  return errors.mean(axis=(1, 2, 3))

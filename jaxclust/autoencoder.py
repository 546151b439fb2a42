"""A convolutional autoencoder for images of any size and number of channels.

The encoder halves the image once per entry of `features` (3x3 convolution,
relu, 2x2 max pool). The decoder mirrors it (3x3 convolution, relu, nearest
upsampling by 2, cropped to the size that the encoder had there) and ends in a
convolution to the image's channels, with relu. Features (16, 8, 8) at 28x28x1
have 4,385 parameters and a code of 4 x 4 x 8 = 128 numbers.

Axes: B batch, H height, W width, C channels, D numbers of the code.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclust import layers, numerics
from jaxclust.numerics import InputError


class Autoencoder(nn.Module):
  """Encodes images `[B, H, W, C]` as `[B, D]` and decodes them again.

  Attributes:
    image_shape: (H, W, C).
    features: channels after each convolution of the encoder.
    dtype: of the maps between layers; parameters, codes and reconstructions are
      float32.
  """

  image_shape: tuple[int, int, int]
  features: Sequence[int] = (16, 8, 8)
  dtype: Any = jnp.float32

  def setup(self):
    channels = self.image_shape[-1]
    self.encoder = [Conv(n) for n in self.features]
    # The first convolution of the decoder stands at the lowest resolution, each
    # further one behind an upsampling.
    decoder = [*reversed(self.features), channels]
    self.decoder = [Conv(n) for n in decoder]

  def convolutions(self, params: Any) -> list[dict[str, jax.Array]]:
    """Kernels `[3, 3, I, O]` and biases `[O]` from the images to the images."""
    names = [f'encoder_{i}' for i in range(len(self.features))]
    names += [f'decoder_{i}' for i in range(len(self.features) + 1)]
    return [params['params'][name] for name in names]

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs images `[B, H, W, C]` in [0, 1]."""
    return self.decode(self.encode(images))

  def encode(self, images: jax.Array) -> jax.Array:
    """Codes `[B, D]` of images `[B, H, W, C]` in [0, 1]."""
    x = images.astype(self.dtype)
    for conv in self.encoder:
      x = conv(x, pool=True)
    return x.reshape(x.shape[0], -1).astype(jnp.float32)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]` of codes `[B, D]`."""
    sizes = level_sizes(self.image_shape, len(self.features))
    x = latents.astype(self.dtype)
    x = x.reshape(x.shape[0], *sizes[-1], self.features[-1])
    x = nn.relu(self.decoder[0](x))
    for conv, size in zip(self.decoder[1:], sizes[-2::-1], strict=True):
      x = nn.relu(conv(x, size))
    return x.astype(jnp.float32)


class Conv(nn.Module):
  """A 3x3 convolution with bias, behind an upsampling if a size is given.

  With `pool`, relu and a 2x2 max pool follow.
  """

  features: int

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    size: tuple[int, int] | None = None,
    pool: bool = False,
  ) -> jax.Array:
    kernel = self.param(
      'kernel',
      nn.initializers.glorot_uniform(),
      (3, 3, x.shape[-1], self.features),
    ).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    bias = bias.astype(x.dtype)
    if pool:
      return layers.relu_pool(layers.conv(x, kernel), bias)
    if size is None:
      x = layers.conv(x, kernel)
    else:
      x = layers.upsample_conv(x, kernel, size)
    return x + bias.reshape(1, 1, 1, -1)


def check_options(*, features: Sequence[int]) -> None:
  """Checks the options of the network.

  Raises:
    InputError: if there is no level, or one without channels.
  """
  if not features:
    raise InputError('features is empty: name the channels of each level')
  for channels in features:
    numerics.check_count('each of features', channels)


def level_sizes(
  image_shape: tuple[int, int, int], num_levels: int
) -> list[tuple[int, int]]:
  """Sizes (H, W) of the maps from the image down, `num_levels + 1` of them."""
  sizes = [tuple(image_shape[:2])]
  for _ in range(num_levels):
    height, width = sizes[-1]
    sizes.append((-(-height // 2), -(-width // 2)))
  return sizes


def count_operations(model: Autoencoder) -> int:
  """Additions and multiplications of the plain network for one image."""
  sizes = level_sizes(model.image_shape, len(model.features))
  areas = [height * width for height, width in sizes]
  channels = [model.image_shape[-1], *model.features]
  pairs = [a * b for a, b in itertools.pairwise(channels)]
  inner = areas[-1] * channels[-1] ** 2
  # Each level is passed on the way down and, mirrored, on the way up.
  levels = zip(areas[:-1], pairs, strict=True)
  return 18 * (inner + 2 * sum(area * pair for area, pair in levels))


def code_size(
  image_shape: tuple[int, int, int], features: Sequence[int]
) -> int:
  """Numbers D in the code of an image."""
  return math.prod(level_sizes(image_shape, len(features))[-1]) * features[-1]

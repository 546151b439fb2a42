"""Networks that encode images as vectors and decode them again.

A network is a Linen module with `encode`, and `decode` if it can reconstruct.
Its activations have `dtype`; parameters, codes and reconstructions are float32.
Where it can reconstruct, a CPU takes `part` images at once through it in
training, all of them if it is 0.
A network that normalises by the batch is given `mean_of`, a function from
`[B, ..., C]` to the means `[C]` over the whole batch; without it, it uses the
moments that `encode` kept when the collection 'moments' was mutable.

Axes: B batch, H height, W width, C channels, D numbers of the code.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclust import checks, layers
from jaxclust.errors import InputError


class ConvAutoencoder(nn.Module):
  """Convolutions, for images of any size and number of channels.

  The encoder halves the image once per entry of `features` (3x3 convolution,
  relu, 2x2 max pool). The decoder mirrors it (3x3 convolution, relu, nearest
  upsampling by 2, cropped to the size that the encoder had there) and ends in a
  convolution to the image's channels, with relu. Features (16, 8, 8) at 28x28x1
  have 4,385 parameters and a code of 4 x 4 x 8 = 128 numbers.

  Attributes:
    image_shape: (H, W, C).
    features: channels after each convolution of the encoder.
    dtype: of the maps between layers.
  """

  image_shape: tuple[int, int, int]
  features: Sequence[int] = (16, 8, 8)
  dtype: Any = jnp.float32
  part = 32  # so that what lies between two layers fits the cache of a core
  uses_all_cores = False

  def setup(self):
    channels = self.image_shape[-1]
    self.encoder = [Conv(n) for n in self.features]
    # The first convolution of the decoder stands at the lowest resolution, each
    # further one behind an upsampling.
    decoder = [*reversed(self.features), channels]
    self.decoder = [Conv(n) for n in decoder]

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs images `[B, H, W, C]` in [0, 1]."""
    return self.decode(self.encode(images))

  def encode(self, images: jax.Array, mean_of: Any = None) -> jax.Array:
    """Codes `[B, D]` of images `[B, H, W, C]` in [0, 1]."""
    del mean_of
    x = images.astype(self.dtype)
    for conv in self.encoder:
      x = conv(x, pool=True)
    return x.reshape(x.shape[0], -1).astype(jnp.float32)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]` of codes `[B, D]`."""
    sizes = self.level_sizes()
    x = latents.astype(self.dtype)
    x = x.reshape(x.shape[0], *sizes[-1], self.features[-1])
    x = nn.relu(self.decoder[0](x))
    for conv, size in zip(self.decoder[1:], sizes[-2::-1], strict=True):
      x = nn.relu(conv(x, size))
    return x.astype(jnp.float32)

  def convolutions(self, params: Any) -> list[dict[str, jax.Array]]:
    """Kernels `[3, 3, I, O]` and biases `[O]` from the images to the images."""
    names = [f'encoder_{i}' for i in range(len(self.features))]
    names += [f'decoder_{i}' for i in range(len(self.features) + 1)]
    return [params['params'][name] for name in names]

  def level_sizes(self) -> list[tuple[int, int]]:
    """Sizes (H, W) of the maps from the image down."""
    sizes = [tuple(self.image_shape[:2])]
    for _ in self.features:
      height, width = sizes[-1]
      sizes.append((-(-height // 2), -(-width // 2)))
    return sizes

  def code_size(self) -> int:
    """Numbers D in the code of an image."""
    return math.prod(self.level_sizes()[-1]) * self.features[-1]

  def count_operations(self) -> int:
    """Additions and multiplications of the plain network for one image."""
    areas = [height * width for height, width in self.level_sizes()]
    channels = [self.image_shape[-1], *self.features]
    pairs = [a * b for a, b in itertools.pairwise(channels)]
    inner = areas[-1] * channels[-1] ** 2
    # Each level is passed on the way down and, mirrored, on the way up.
    levels = zip(areas[:-1], pairs, strict=True)
    return 18 * (inner + 2 * sum(area * pair for area, pair in levels))


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


class DenseAutoencoder(nn.Module):
  """Dense layers, as in DEC (Xie et al. 2016): 784-500-500-2000-10, mirrored.

  Relu follows each layer but the code and the reconstruction.

  Attributes:
    image_shape: (H, W, C).
    features: widths after the image; the last is that of the code.
    dtype: of the activations.
  """

  image_shape: tuple[int, int, int]
  features: Sequence[int] = (500, 500, 2000, 10)
  dtype: Any = jnp.float32
  part = 0  # so that the weights, which exceed the cache, are read once
  uses_all_cores = True  # as XLA spreads large products over them

  def setup(self):
    widths = [*reversed(self.features[:-1]), math.prod(self.image_shape)]
    self.encoder = [self._dense(n) for n in self.features]
    self.decoder = [self._dense(n) for n in widths]

  def _dense(self, width):
    return nn.Dense(
      width,
      dtype=self.dtype,
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=nn.initializers.glorot_uniform(),
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs images `[B, H, W, C]` in [0, 1]."""
    return self.decode(self.encode(images))

  def encode(self, images: jax.Array, mean_of: Any = None) -> jax.Array:
    """Codes `[B, D]` of images `[B, H, W, C]` in [0, 1]."""
    del mean_of
    x = _chain(self.encoder, images.reshape(images.shape[0], -1))
    return x.astype(jnp.float32)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Images `[B, H, W, C]` of codes `[B, D]`."""
    x = _chain(self.decoder, latents)
    return x.reshape(-1, *self.image_shape).astype(jnp.float32)

  def code_size(self) -> int:
    """Numbers D in the code of an image."""
    return self.features[-1]

  def count_operations(self) -> int:
    """Additions and multiplications of the network for one image."""
    widths = math.prod(self.image_shape), *self.features
    return 4 * sum(a * b for a, b in itertools.pairwise(widths))


def _chain(dense_layers, x):
  *hidden, last = dense_layers
  for layer in hidden:
    x = nn.relu(layer(x))
  return last(x)


class BatchNorm(nn.Module):
  """Divides the channels of `[B, ..., C]` by their spread about their means.

  Reference:
    Ioffe and Szegedy (2015), Batch normalization,
      https://proceedings.mlr.press/v37/ioffe15.html
  """

  @nn.compact
  def __call__(self, x: jax.Array, mean_of: Any = None) -> jax.Array:
    width = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, width)
    bias = self.param('bias', nn.initializers.zeros, width)
    mean = self.variable('moments', 'mean', jnp.zeros, width)
    variance = self.variable('moments', 'variance', jnp.ones, width)
    if mean_of is None:
      moments = mean.value, variance.value
    else:
      center = mean_of(x)
      moments = center, mean_of(jnp.square(x - _wide(center, x)))
      if self.is_mutable_collection('moments'):
        mean.value, variance.value = moments
    factor = scale * jax.lax.rsqrt(moments[1] + 1e-5)
    shift = bias - moments[0] * factor
    return x * _wide(factor, x) + _wide(shift, x)


def _wide(values, like):
  """Values `[C]` with as many axes as an array `[..., C]`."""
  values = values.astype(like.dtype)
  return values.reshape((1,) * (like.ndim - 1) + values.shape)


class StridedEncoder(nn.Module):
  """Convolutions in steps of two pixels and a dense layer, normalised.

  Batch normalisation and relu follow each layer. The first kernel is 5x5, the
  others 3x3; each halves the image. The network has no decoder.

  Attributes:
    image_shape: (H, W, C).
    features: channels of the convolutions, then the width of the code.
    dtype: of the activations.
    sees: of `_SIGHTS`: the image, its `layers.edges`, or both.
  """

  image_shape: tuple[int, int, int]
  features: Sequence[int] = (32, 64, 128, 256)
  dtype: Any = jnp.float32
  sees: str = 'image'
  uses_all_cores = False

  @nn.compact
  def encode(self, images: jax.Array, mean_of: Any = None) -> jax.Array:
    """Codes `[B, D]` of images `[B, H, W, C]` in [0, 1]."""
    x = _SIGHTS[self.sees][1](images).astype(self.dtype)
    *channels, width = self.features
    for number, count in enumerate(channels):
      size = 3 if number else 5
      kernel = self.param(
        f'kernel_{number}', _SMALL, (size, size, x.shape[-1], count)
      )
      x = layers.halving_conv(x, kernel.astype(x.dtype))
      x = nn.relu(BatchNorm()(x, mean_of))
    x = x.reshape(x.shape[0], -1)
    x = nn.Dense(
      width,
      use_bias=False,
      dtype=self.dtype,
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=_SMALL,
    )(x)
    return nn.relu(BatchNorm()(x, mean_of)).astype(jnp.float32)

  __call__ = encode

  def code_size(self) -> int:
    """Numbers D in the code of an image."""
    return self.features[-1]

  def count_operations(self) -> int:
    """Additions and multiplications for the code of one image."""
    height, width, channels = self.image_shape
    channels *= _SIGHTS[self.sees][0]
    total = 0
    for number, count in enumerate(self.features[:-1]):
      height, width = -(-height // 2), -(-width // 2)
      taps = 9 if number else 25
      total += height * width * taps * channels * count
      channels = count
    return 2 * (total + height * width * channels * self.features[-1])


# Sights of images [B, H, W, C]: how many times C channels, and their function.
_SIGHTS = {
  'image': (1, lambda x: x),
  'edges': (2, layers.edges),
  'both': (3, lambda x: jnp.concatenate([x, layers.edges(x)], axis=3)),
}

# Weights that are normalised by the batch: small ones turn faster in a step.
_SMALL = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

NETWORKS = {
  'conv': ConvAutoencoder,
  'mlp': DenseAutoencoder,
  'strided': StridedEncoder,
  'edges': functools.partial(StridedEncoder, sees='both'),
  'outlines': functools.partial(StridedEncoder, sees='edges'),
}


def check_options(*, name: str, features: Sequence[int]) -> None:
  """Checks the options of a network.

  Raises:
    InputError: if the name is unknown, or a layer has no width.
  """
  checks.check_choice('network.name', name, NETWORKS)
  if not isinstance(features, Sequence) or isinstance(features, str):
    raise InputError(
      f'features is {features!r}: name the width of each layer, or () for '
      'those of the network'
    )
  for width in features:
    checks.check_count('each of features', width)


def build(
  image_shape: Sequence[int],
  *,
  name: str = 'conv',
  features: Sequence[int] = (),
) -> nn.Module:
  """The network of options for images of a shape (H, W, C).

  >>> build((28, 28, 1)).code_size()
  128

  Args:
    image_shape: (H, W, C).
    name: of `NETWORKS`.
    features: widths of its layers; () for its own.
  """
  widths = {'features': tuple(features)} if features else {}
  return NETWORKS[name](tuple(image_shape), **widths)

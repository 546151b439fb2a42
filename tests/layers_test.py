"""Each fast layer against its plain formula, in value and in gradient."""

import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import ndimage

from jaxclust import layers

SHAPES = [(1, 1, 1, 1), (2, 7, 5, 3), (3, 8, 8, 1), (1, 4, 6, 2), (5, 2, 3, 4)]
# Few and many channels, as many in as out or four times as many.
CHANNELS = [(1, 1), (1, 4), (4, 1), (3, 2), (2, 40), (16, 8), (40, 3)]


def plain_conv(x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def plain_relu_pool(x, bias):
  return nn.max_pool(
    nn.relu(x + bias[None, None, None]), (2, 2), (2, 2), 'SAME'
  )


def plain_upsample_conv(x, kernel, size):
  batch, height, width, channels = x.shape
  x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), 'nearest')
  return plain_conv(x[:, : size[0], : size[1]], kernel)


def assert_same(fast, plain, *args):
  """Asserts equal values, and equal gradients of a random projection, which are
  returned."""
  direction = draw(jax.eval_shape(plain, *args).shape, 9)

  @jax.jit
  def values_and_gradients(direction, *args):
    pairs = []
    for fn in (fast, plain):
      value, pull = jax.vjp(fn, *args)
      pairs.append((value, pull(direction)))
    return tuple(zip(*pairs, strict=True))

  values, gradients = values_and_gradients(direction, *args)
  chex.assert_trees_all_close(*values, atol=1e-5)
  chex.assert_trees_all_close(*gradients, atol=1e-4, rtol=1e-4)
  return gradients[0]


def draw(shape, seed=0):
  """Normal numbers of NumPy: JAX compiles its own for each shape."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_convolution_by_hand():
  x = np.zeros((1, 3, 3, 1), np.float32)
  x[0, 0, 0, 0] = 2
  kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
  # Cross-correlation: the pixel meets the taps at and before the center.
  expected = np.array([[8, 6, 0], [2, 0, 0], [0, 0, 0]])
  found = np.asarray(jax.jit(layers.conv)(x, kernel))
  np.testing.assert_array_equal(found[0, ..., 0], expected)


@pytest.mark.parametrize(
  ('shape', 'channels'), [*zip(itertools.cycle(SHAPES), CHANNELS, strict=False)]
)
def test_conv_is_the_plain_convolution(shape, channels):
  x = draw((*shape[:3], channels[0]))
  assert_same(layers.conv, plain_conv, x, draw((3, 3, *channels), 1))


@pytest.mark.parametrize('shape', SHAPES)
def test_relu_pool_is_relu_and_max_pool(shape):
  bias = draw(shape[-1:], 1)
  assert_same(layers.relu_pool, plain_relu_pool, draw(shape), bias)


def test_where_pooled_values_tie_the_first_takes_the_gradient():
  x, bias = np.full((1, 4, 4, 2), 3, np.float32), np.ones(2, np.float32)
  grad, _ = assert_same(layers.relu_pool, plain_relu_pool, x, bias)
  first = [[0, 0], [0, 2], [2, 0], [2, 2]]
  np.testing.assert_array_equal(np.argwhere(np.asarray(grad)[0, ..., 0]), first)


def test_where_nothing_is_positive_there_is_no_gradient():
  x = np.array([-1, 0, -2, 0], np.float32).reshape(1, 2, 2, 1)
  bias = np.zeros(1, np.float32)
  grad, _ = assert_same(layers.relu_pool, plain_relu_pool, x, bias)
  assert not np.asarray(grad).any()


@pytest.mark.parametrize(
  ('shape', 'crop', 'channels_out'),
  [
    (shape, *options)
    for shape, options in zip(
      itertools.cycle(SHAPES),
      itertools.product([(0, 0), (1, 0), (1, 1)], [1, 3, 9]),
      strict=False,
    )
  ],
)
def test_upsample_conv_is_upsampling_and_a_convolution(
  shape, crop, channels_out
):
  size = (2 * shape[1] - crop[0], 2 * shape[2] - crop[1])
  kernel = draw((3, 3, shape[-1], channels_out), 1)
  assert_same(
    lambda x, k: layers.upsample_conv(x, k, size),
    lambda x, k: plain_upsample_conv(x, k, size),
    draw(shape),
    kernel,
  )


@pytest.mark.parametrize(
  ('shape', 'size', 'channels'),
  [
    ((2, 28, 28), 5, (1, 8)),
    ((3, 7, 5), 3, (3, 2)),
    ((1, 8, 6), 3, (4, 20)),
    ((2, 1, 1), 3, (2, 2)),
    ((2, 5, 4), 1, (2, 3)),
  ],
)
def test_halving_conv_is_the_plain_convolution_of_stride_2(
  shape, size, channels
):
  def plain(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (2, 2),
      ((size // 2,) * 2,) * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  x, kernel = draw((*shape, channels[0])), draw((size, size, *channels), 1)
  found = jax.eval_shape(layers.halving_conv, x, kernel)
  chex.assert_shape(
    found, (shape[0], -(-shape[1] // 2), -(-shape[2] // 2), None)
  )
  assert_same(layers.halving_conv, plain, x, kernel)


def test_layers_do_not_depend_on_jit():
  x, kernel = draw((2, 6, 6, 2)), draw((3, 3, 2, 3), 1)
  bias = draw((3,), 2)
  wider = kernel[:, :, :1].repeat(3, 2)

  def layer(x, kernel):
    pooled = layers.relu_pool(layers.conv(x, kernel), bias)
    return layers.upsample_conv(pooled, wider, (6, 6))

  @jax.jit
  def plain(x, kernel):
    pooled = plain_relu_pool(plain_conv(x, kernel), bias)
    return plain_upsample_conv(pooled, wider, (6, 6))

  expected = plain(x, kernel)
  for variant in (layer, jax.jit(layer)):
    out = variant(x, kernel)
    chex.assert_shape(out, (2, 6, 6, 3))
    chex.assert_trees_all_close(out, expected, atol=1e-4)


def test_gradients_in_a_loop_are_those_outside():
  x, kernel = draw((4, 8, 8, 3)), draw((3, 3, 3, 2), 1)
  grad = jax.grad(lambda k: jnp.square(layers.conv(x, k)).mean())

  @jax.jit
  def descend(kernel):
    looped = lax.fori_loop(0, 3, lambda _, k: k - 0.1 * grad(k), kernel)
    for _ in range(3):
      kernel = kernel - 0.1 * grad(kernel)
    return looped, kernel

  chex.assert_trees_all_close(*descend(kernel), atol=1e-5)


def test_edges_are_sobels_by_scipy():
  x = draw((2, 7, 5, 3))
  found = jax.jit(layers.edges)(x)
  for axis, own in ((1, found[..., :3]), (2, found[..., 3:])):
    slope = ndimage.correlate1d(
      np.float64(x), [-1, 0, 1], axis=axis, mode='nearest'
    )
    plain = ndimage.correlate1d(slope, [1, 2, 1], axis=3 - axis, mode='nearest')
    np.testing.assert_allclose(own, plain / 4, atol=1e-5)

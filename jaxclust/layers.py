"""Convolution, pooling and upsampling that XLA runs fast on CPU, GPU and TPU.

Each function equals a plain formula, named in its docstring, in value and in
gradient; only the order of the arithmetic differs. Products of float32 have its
full precision on every device. Images are `[B, H, W, C]`, kernels
`[3, 3, I, O]`.

Axes: B batch, H height, W width, C channels, I channels in, O channels out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust.frames import dot

# Which taps of a 3x3 kernel, applied after nearest upsampling by 2, fall on
# which of the two pixels around an edge of the low resolution: [output pixel
# before or behind the edge, pixel before or behind it, tap].
_FOLD = np.array(
  [[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]],
  np.float32,
)

# Up to so many channels, XLA's CPU convolution is faster in blocks of pixels:
# it leaves convolutions with no more to Eigen, and others to YNNPACK.
_FEW_CHANNELS = 16

_HIGHEST = lax.Precision.HIGHEST


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves `[B, H, W, I]` with `[3, 3, I, O]`, zero padded to equal size.

  Equals `lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', ...)` in NHWC and
  HWIO, and is that but on CPUs. There the gradients are written as convolutions
  in the same layouts, because XLA's CPU backend leaves others to a naive loop
  wherever they stand in the body of a loop, or as products of matrices.
  """
  return _conv(x, kernel, 1)


def _conv(x, kernel, margin):
  """Convolves behind a margin of zeros on all sides."""
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_cpu_conv, margin),
    default=functools.partial(_plain_conv, margin=margin),
  )


def _plain_conv(x, kernel, margin):
  return _strided_conv(x, kernel, (1, 1), ((margin, margin),) * 2)


def _strided_conv(x, kernel, strides, padding):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=_HIGHEST,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_conv(margin, x, kernel):
  size, _, channels_in, channels_out = kernel.shape
  if max(channels_in, channels_out) > _FEW_CHANNELS:
    return _plain_conv(x, kernel, margin)
  # Each pixel of a block sees another part of the same larger window.
  block = (1, 2) if 2 * channels_out > _FEW_CHANNELS else (2, 2)
  shifted = [
    jnp.pad(kernel, ((i, block[0] - 1 - i), (j, 1 - j), (0, 0), (0, 0)))
    for i, j in np.ndindex(block)
  ]
  kernel = jnp.concatenate(shifted, axis=3)
  height, width = (n + 2 * margin - size + 1 for n in x.shape[1:3])
  padding = (
    (margin, margin + -height % block[0]),
    (margin, margin + width % 2),
  )
  y = _from_blocks(_strided_conv(x, kernel, block, padding), block)
  return y[:, :height, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _from_blocks(y, block):
  """`[B, H, W, N M C]`, pixels of N x M blocks, as `[B, N H, M W, C]`."""
  batch, height, width, _ = y.shape
  y = y.reshape(batch, height, width, *block, -1).swapaxes(2, 3)
  return y.reshape(batch, block[0] * height, block[1] * width, -1)


def _to_blocks(block, _, x):
  """The inverse, by slices: XLA's CPU transposition takes twice as long."""
  pixels = [x[:, i :: block[0], j :: block[1]] for i, j in np.ndindex(block)]
  return (jnp.concatenate(pixels, axis=3),)


_from_blocks.defvjp(lambda y, block: (_from_blocks(y, block), None), _to_blocks)


def _cpu_conv_forward(margin, x, kernel):
  return _cpu_conv(margin, x, kernel), (x, kernel)


def _cpu_conv_backward(margin, saved, grad):
  x, kernel = saved
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  grad_x = _cpu_conv(len(kernel) - 1 - margin, grad, flipped)
  return grad_x, _grad_kernel(x, grad, margin)


def _grad_kernel(x, grad, margin):
  """The gradient `[N, N, I, O]` of a kernel."""
  channels_in, channels_out = x.shape[3], grad.shape[3]
  size = x.shape[1] + 2 * margin - grad.shape[1] + 1
  if channels_in > channels_out:
    flipped = _grad_kernel(grad, x, size - 1 - margin)
    return flipped[::-1, ::-1].swapaxes(2, 3)
  if channels_out >= 4 * channels_in:
    windows = _windows(x, size, margin)
    grad = grad.reshape(-1, channels_out)
    product = jnp.matmul(windows, grad, precision=_HIGHEST)
    return product.reshape(size, size, channels_in, channels_out)
  # Images take the channels' place and channels the images', so that the sum
  # over images and places is the convolution's own.
  x, grad = x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)
  return _plain_conv(x, grad, margin).transpose(1, 2, 0, 3)


def _windows(x, size, margin):
  """The pixels that each place of a kernel meets, `[N N I, B H W]`."""
  x = x.transpose(3, 0, 1, 2)
  x = jnp.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
  height, width = (n - size + 1 for n in x.shape[2:])
  places = [
    x[:, :, i : i + height, j : j + width] for i, j in np.ndindex(size, size)
  ]
  return jnp.stack(places).reshape(size * size * len(x), -1)


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


@jax.custom_vjp
def relu_pool(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias `[C]` and takes the maximum of 2x2 blocks and of 0.

  Equals `nn.max_pool(nn.relu(x + bias), (2, 2), (2, 2), 'SAME')`,
  `[B, ceil(H/2), ceil(W/2), C]`. Where values tie, the first takes the
  gradient.
  """
  return _relu_pool(x, bias)[0]


def _relu_pool(x, bias):
  _, height, width, _ = x.shape
  x = x + bias.reshape(1, 1, 1, -1)
  x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
  top = jnp.zeros_like(corners[0])
  winner = jnp.full(top.shape, -1, jnp.int8)
  for place, corner in enumerate(corners):
    winner = jnp.where(corner > top, jnp.int8(place), winner)
    top = jnp.maximum(corner, top)
  return top, winner


def _relu_pool_forward(x, bias):
  top, winner = _relu_pool(x, bias)
  return top, (winner, x.shape)


def _relu_pool_backward(saved, grad):
  winner, (batch, height, width, channels) = saved
  grad_bias = jnp.where(winner >= 0, grad, 0).sum((0, 1, 2))
  places = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
  grad = jnp.where(
    winner[:, :, None, :, None] == places, grad[:, :, None, :, None], 0
  )
  grad = grad.reshape(batch, height + height % 2, width + width % 2, channels)
  return grad[:, :height, :width], grad_bias


relu_pool.defvjp(_relu_pool_forward, _relu_pool_backward)


def upsample(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Repeats each pixel 2x2 and crops the ends of the axes to size (H, W)."""
  x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  return x[:, : size[0], : size[1]]


def upsample_conv(
  x: jax.Array, kernel: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Upsamples `[B, H, W, I]` by 2 to size and convolves with `[3, 3, I, O]`.

  Equals `conv(upsample(x, size), kernel)`. Where nothing is cropped it is one
  convolution at the low resolution, from the 2x2 pixels around each corner to
  the 2x2 pixels that will be around it: less than half the arithmetic.
  """
  _, height, width, _ = x.shape
  if tuple(size) != (2 * height, 2 * width):
    return conv(upsample(x, size), kernel)
  _, _, channels_in, channels_out = kernel.shape
  fold = jnp.asarray(_FOLD, kernel.dtype)
  kernel = jnp.einsum(
    'pau,qbv,uvio->abipqo', fold, fold, kernel, precision=_HIGHEST
  )
  kernel = kernel.reshape(2, 2, channels_in, 4 * channels_out)
  return _from_blocks(_conv(x, kernel, 1), (2, 2))[:, 1:-1, 1:-1]


def halving_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves `[B, H, W, I]` with `[N, N, I, O]`, N odd, in steps of 2 pixels.

  Equals `lax.conv_general_dilated(x, kernel, (2, 2), ...)` behind a margin of
  N // 2 zeros, `[B, ceil(H/2), ceil(W/2), O]`. On a CPU it is a product of
  matrices, and so are its gradients.
  """
  margin = len(kernel) // 2
  return lax.platform_dependent(
    x,
    kernel,
    cpu=_cpu_halving_conv,
    default=lambda x, kernel: _strided_conv(
      x, kernel, (2, 2), ((margin, margin),) * 2
    ),
  )


def _cpu_halving_conv(x, kernel):
  patches = _halving_patches(x, len(kernel))
  return _product(patches, kernel.reshape(-1, kernel.shape[-1]))


@jax.custom_vjp
def _product(x, kernel):
  """The product of `[..., I]` and `[I, O]`."""
  return dot(x, kernel)


def _product_forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _product_backward(saved, grad):
  x, kernel = saved
  # Fused with the transposition, what computes the gradient writes it column by
  # column, which takes XLA longer than the product.
  grad = lax.optimization_barrier(grad)
  flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
  return dot(grad, kernel.T), dot(flat[0].T, flat[1])


_product.defvjp(_product_forward, _product_backward)


def _halving_patches(x, size):
  """The pixels that each place of a kernel meets, `[B, H/2, W/2, N N I]`."""
  margin = size // 2
  x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
  height, width = (n - size + 1 for n in x.shape[1:3])
  parts = [
    x[:, i : i + height : 2, j : j + width : 2]
    for i, j in np.ndindex(size, size)
  ]
  return jnp.concatenate(parts, axis=3)


def edges(x: jax.Array) -> jax.Array:
  """Slopes down and to the right, `[B, H, W, 2 C]`, of images `[B, H, W, C]`.

  They are Sobel's by 4: 1 at a step from 0 to 1. Beyond its border an image
  goes on as it ends.
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  down, right = x[:, 2:] - x[:, :-2], x[:, :, 2:] - x[:, :, :-2]
  down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
  right = right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:]
  return jnp.concatenate([down, right], axis=3) / 4

"""Convolution, pooling and upsampling that XLA runs fast on CPU, GPU and TPU.

Each function equals a plain formula, named in its docstring, in value and in
gradient; only the order of the arithmetic differs. Images are `[B, H, W, C]`,
kernels `[3, 3, I, O]`.

Axes: B batch, H height, W width, C channels, I channels in, O channels out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Which taps of a 3x3 kernel, applied after nearest upsampling by 2, fall on
# which neighbour at the low resolution: [output phase, neighbour, tap].
_FOLD = np.array(
  [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]],
  np.float32,
)


# XLA's CPU convolution of so few pairs of channels is faster in 2x2 blocks.
_FEW_CHANNELS = 64


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves `[B, H, W, I]` with `[3, 3, I, O]`, zero padded to equal size.

  Equals `lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', ...)` in NHWC and
  HWIO, and is that but on CPUs. There the gradients are written as convolutions
  in the same layouts, because XLA's CPU backend leaves others to a naive loop
  wherever they stand in the body of a loop, or as products of matrices.
  """
  return lax.platform_dependent(x, kernel, cpu=_cpu_conv, default=_plain_conv)


def _plain_conv(x, kernel, stride=1, padding=((1, 1), (1, 1))):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@jax.custom_vjp
def _cpu_conv(x, kernel):
  _, height, width, _ = x.shape
  *_, channels_in, channels_out = kernel.shape
  if channels_in * channels_out > _FEW_CHANNELS:
    return _plain_conv(x, kernel)
  # Each of the 2x2 pixels of a block sees another part of the same 4x4.
  corners = [
    jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
    for i in (0, 1)
    for j in (0, 1)
  ]
  kernel = jnp.concatenate(corners, axis=3)
  y = _plain_conv(x, kernel, 2, ((1, 1 + height % 2), (1, 1 + width % 2)))
  return _from_blocks(y)[:, :height, :width]


def _from_blocks(y):
  """`[B, H, W, 4 C]`, the pixels of 2x2 blocks, as `[B, 2 H, 2 W, C]`."""
  batch, height, width, channels = y.shape
  y = y.reshape(batch, height, width, 2, 2, channels // 4)
  y = y.transpose(0, 1, 3, 2, 4, 5)
  return y.reshape(batch, 2 * height, 2 * width, channels // 4)


def _cpu_conv_forward(x, kernel):
  return _cpu_conv(x, kernel), (x, kernel)


def _cpu_conv_backward(saved, grad):
  x, kernel = saved
  grad_x = _cpu_conv(grad, kernel[::-1, ::-1].swapaxes(2, 3))
  return grad_x, _grad_kernel(x, grad)


def _grad_kernel(x, grad):
  """The gradient `[3, 3, I, O]` of a kernel."""
  channels_in, channels_out = x.shape[3], grad.shape[3]
  if channels_out >= 4 * channels_in:
    neighbours = _neighbours(x).reshape(-1, 9 * channels_in)
    product = neighbours.T @ grad.reshape(-1, channels_out)
    return product.reshape(3, 3, channels_in, channels_out)
  if channels_in >= 4 * channels_out:
    return _grad_kernel(grad, x)[::-1, ::-1].swapaxes(2, 3)
  # Images take the channels' place and channels the images', so that the sum
  # over images and places is the convolution's own.
  grad = _plain_conv(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3))
  return grad.transpose(1, 2, 0, 3)


def _neighbours(x):
  """The 3x3 pixels around each, `[B, H, W, 9 C]`; zeros beyond the edge."""
  _, height, width, _ = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], axis=3)
  return jnp.concatenate([x[:, i : i + height] for i in range(3)], axis=3)


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


@jax.custom_vjp
def relu_pool(x: jax.Array) -> jax.Array:
  """Takes the maximum of 2x2 blocks and of 0, `[B, ceil(H/2), ceil(W/2), C]`.

  Equals `nn.max_pool(nn.relu(x), (2, 2), (2, 2), 'SAME')`. Where values tie,
  the first takes the gradient.
  """
  return _relu_pool(x)[0]


def _relu_pool(x):
  _, height, width, _ = x.shape
  x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
  corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
  top = jnp.zeros_like(corners[0])
  winner = jnp.full(top.shape, -1, jnp.int8)
  for place, corner in enumerate(corners):
    winner = jnp.where(corner > top, jnp.int8(place), winner)
    top = jnp.maximum(corner, top)
  return top, winner


def _relu_pool_forward(x):
  top, winner = _relu_pool(x)
  return top, (winner, x.shape)


def _relu_pool_backward(saved, grad):
  winner, shape = saved
  rows = [
    jnp.stack([jnp.where(winner == 2 * i + j, grad, 0) for j in (0, 1)], 3)
    for i in (0, 1)
  ]
  _, height, width, _ = shape
  batch, half_height, half_width, channels = grad.shape
  grad = jnp.stack(rows, 2).reshape(
    batch, 2 * half_height, 2 * half_width, channels
  )
  return (grad[:, :height, :width],)


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
  convolution at the low resolution, whose 4 O channels are the four pixels that
  each pixel becomes: less than half the arithmetic.
  """
  _, height, width, _ = x.shape
  if tuple(size) != (2 * height, 2 * width):
    return conv(upsample(x, size), kernel)
  _, _, channels_in, channels_out = kernel.shape
  fold = jnp.asarray(_FOLD, kernel.dtype)
  kernel = jnp.einsum(
    'pau,qbv,uvio->abipqo',
    fold,
    fold,
    kernel,
    precision=lax.Precision.HIGHEST,
  )
  kernel = kernel.reshape(3, 3, channels_in, 4 * channels_out)
  return _from_blocks(conv(x, kernel))

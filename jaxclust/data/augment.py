"""Augmentation of mini-batches: noise to be removed, and small motions.

Axes: B batch, H height, W width, C channels.

Reference:
  Vincent et al. (2008), Extracting and composing robust features with
    denoising autoencoders, https://doi.org/10.1145/1390156.1390294
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from jaxclust.checks import check_number

# Options of `from_options`.
OPTIONS = ('noise', 'max_shift', 'max_rotation')


class Motion(NamedTuple):
  """The bounds of random motions of images."""

  max_shift: float  # pixels, along each axis
  max_rotation: float  # degrees, about the center


class Augmentation(NamedTuple):
  """The random changes of images; None disables one and costs nothing."""

  noise: float | None = None  # standard deviation; pixels are in [0, 1]
  motion: Motion | None = None


def from_options(
  *, noise: float, max_shift: float, max_rotation: float
) -> Augmentation:
  """Returns an augmentation; an option of 0 disables its change.

  Args:
    noise: standard deviation of the noise; pixels are in [0, 1].
    max_shift: pixels, along each axis.
    max_rotation: degrees, at most 180.

  Raises:
    InputError: an option is negative or too large.

  >>> from_options(noise=0.1, max_shift=0, max_rotation=0)
  Augmentation(noise=0.1, motion=None)
  """
  check_number('noise', noise)
  check_number('max_shift', max_shift)
  check_number('max_rotation', max_rotation, high=180.0)
  moves = max_shift > 0 or max_rotation > 0
  motion = Motion(float(max_shift), float(max_rotation)) if moves else None
  return Augmentation(float(noise) if noise > 0 else None, motion)


def augment(
  keys: jax.Array, pixels: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
  """Draws the inputs of a denoising network and its targets.

  Args:
    keys: `[B]`, JAX random keys, one for each image.
    pixels: `[B, H, W, C]` in [0, 1].
    augmentation: the changes to draw.

  Returns:
    Inputs and targets `[B, H, W, C]`. Both have the same motion, and only the
    inputs have noise.
  """
  noise, motion = augmentation
  if motion is not None:
    pixels = jax.vmap(functools.partial(_draw_motion, motion))(keys, pixels)
  if noise is None:
    return pixels, pixels
  noisy = jax.vmap(functools.partial(_draw_noise, noise))(keys, pixels)
  return noisy, pixels


def _draw_motion(motion, key, image):
  draws = jax.random.uniform(
    jax.random.fold_in(key, 0), (3,), image.dtype, minval=-1
  )
  angle = jnp.deg2rad(motion.max_rotation * draws[2])
  return _move(image, motion.max_shift * draws[:2], angle)


def _draw_noise(noise, key, image):
  drawn = jax.random.normal(
    jax.random.fold_in(key, 1), image.shape, image.dtype
  )
  return jnp.clip(image + noise * drawn, 0, 1)


def _move(image, shift, angle):
  """Rotates an image `[H, W, C]` about its center, then shifts it.

  Pixels that come from beyond the edge are 0.

  Args:
    image: `[H, W, C]`.
    shift: `[2]`, pixels down and to the right.
    angle: radians, clockwise.
  """
  height, width, _ = image.shape
  down, right = (height - 1) / 2, (width - 1) / 2
  y, x = jnp.meshgrid(
    jnp.arange(height, dtype=image.dtype) - down - shift[0],
    jnp.arange(width, dtype=image.dtype) - right - shift[1],
    indexing='ij',
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  places = [cos * y - sin * x + down, sin * y + cos * x + right]
  return jax.vmap(
    lambda channel: ndimage.map_coordinates(channel, places, order=1), 2, 2
  )(image)

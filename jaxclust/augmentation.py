"""Images drawn anew in every epoch: noise to be removed, small motions.

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

from jaxclust import numerics


class Motion(NamedTuple):
  """How far images move."""

  max_shift: float  # pixels, along each axis
  max_rotation: float  # degrees, about the center


class Augmentation(NamedTuple):
  """What is drawn; None is not drawn, and costs nothing."""

  noise: float | None = None  # standard deviation, of pixels in [0, 1]
  motion: Motion | None = None


def from_options(
  *, noise: float, max_shift: float, max_rotation: float
) -> Augmentation:
  """The augmentation of options, of which 0 means none.

  Raises:
    InputError: if they are out of range.
  """
  numerics.check_number('noise', noise)
  numerics.check_number('max_shift', max_shift)
  numerics.check_number('max_rotation', max_rotation, high=180.0)
  moves = max_shift > 0 or max_rotation > 0
  motion = Motion(float(max_shift), float(max_rotation)) if moves else None
  return Augmentation(float(noise) if noise > 0 else None, motion)


def augment(
  keys: jax.Array, pixels: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
  """Draws what the network sees and what it is to answer.

  Args:
    keys: `[B]`, JAX random keys, one for each image.
    pixels: `[B, H, W, C]` in [0, 1].
    augmentation: how much to draw.

  Returns:
    Noisy images and clean ones `[B, H, W, C]`, moved alike.
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
  """Rotates an image `[H, W, C]` by an angle in radians about its center, then
  shifts it by `[2]` pixels; zeros come in from beyond the edge."""
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

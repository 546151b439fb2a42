"""Views of images: what may change of an image while it stays the same thing.

A crop, a flip, a shift and a rotation move the pixels; blur, brightness,
contrast, noise, patterns and erasing change them. An option of 0, or of 1 where
1 changes nothing, disables its change, which then costs nothing.

Axes: B batch, V views, H height, W width, C channels.

References:
  Vincent et al. (2008), Extracting and composing robust features with
    denoising autoencoders, https://doi.org/10.1145/1390156.1390294
  Chen et al. (2020), A simple framework for contrastive learning of visual
    representations, https://proceedings.mlr.press/v119/chen20j.html
  Zhong et al. (2020), Random erasing data augmentation,
    https://doi.org/10.1609/aaai.v34i07.7000
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import ndimage

from jaxclust.checks import check_number

# Options, each with the value that changes nothing and its bounds.
OPTIONS = {
  'crop': (1.0, 0.01, 1.0),  # least share of the area that a crop keeps
  'stretch': (1.0, 1.0, 4.0),  # largest change of a crop's width / height
  'flip': (0.0, 0.0, 1.0),  # probability that left and right are swapped
  # Least share of a crop in views after the second, which then keeps at most
  # `crop`; 1 for views like the first two.
  'extra_crop': (1.0, 0.01, 1.0),
  'max_shift': (0.0, 0.0, jnp.inf),  # pixels, along each axis
  'max_rotation': (0.0, 0.0, 180.0),  # degrees, about the center
  'blur': (0.0, 0.0, 10.0),  # largest standard deviation, pixels
  'contrast': (0.0, 0.0, 1.0),  # largest relative change, about the mean
  'brightness': (0.0, 0.0, 1.0),  # largest relative change
  'pattern': (0.0, 0.0, 1.0),  # largest depth of a random pattern on the image
  'erase': (0.0, 0.0, 0.9),  # largest share of the area that is erased
  'noise': (0.0, 0.0, jnp.inf),  # standard deviation; not in what is wanted
}

# Size of the coarse patterns, and the share of views that stay plain.
_COARSE, _PLAIN = (5, 5), 0.3


class Augmentation(NamedTuple):
  """Groups of options; a group that changes nothing is None."""

  crop: Any = None  # crop, stretch, flip, and the largest share
  extra: Any = None  # extra_crop
  motion: Any = None  # max_shift, max_rotation
  blur: Any = None
  tone: Any = None  # contrast, brightness
  pattern: Any = None
  erase: Any = None
  noise: Any = None


def from_options(**options: float) -> Augmentation:
  """The augmentation of options of `OPTIONS`; others change nothing.

  >>> from_options(noise=0.1)
  Augmentation(crop=None, extra=None, motion=None, blur=None, tone=None, \
pattern=None, erase=None, noise=(0.1,))

  Raises:
    InputError: if an option is out of its bounds.
  """
  values = {}
  for name, (neutral, low, high) in OPTIONS.items():
    values[name] = float(options.get(name, neutral))
    check_number(name, options.get(name, neutral), low, high)

  def group(*names):
    own = tuple(values[name] for name in names)
    neutral = tuple(OPTIONS[name][0] for name in names)
    return None if own == neutral else own

  crop = group('crop', 'stretch', 'flip', 'extra_crop')
  return Augmentation(
    crop=crop and (*crop[:3], 1.0),
    extra=group('extra_crop'),
    motion=group('max_shift', 'max_rotation'),
    blur=group('blur'),
    tone=group('contrast', 'brightness'),
    pattern=group('pattern'),
    erase=group('erase'),
    noise=group('noise'),
  )


def augment(
  keys: jax.Array,
  pixels: jax.Array,
  augmentation: Augmentation,
  num_views: int = 1,
) -> tuple[jax.Array, jax.Array]:
  """Draws views of images.

  Args:
    keys: `[B]`, JAX random keys, one for each image.
    pixels: `[B, H, W, C]` in [0, 1].
    augmentation: the changes to draw.
    num_views: V.

  Returns:
    Views `[B, V, H, W, C]`, and the first of them without noise `[B, H, W, C]`.
  """
  fold_in = jax.vmap(jax.random.fold_in, (0, None))
  clean = augmentation._replace(noise=None, extra=None)
  noise = Augmentation(noise=augmentation.noise)
  views, wanted = [], None
  for view in range(num_views):
    own = fold_in(keys, len(_CHANGES) + view - 1) if view else keys
    if view == 2 and augmentation.extra is not None:
      most, *others = augmentation.crop[:3]
      clean = clean._replace(crop=(*augmentation.extra, *others, most))
    changed = _change(own, pixels, clean)
    wanted = changed if wanted is None else wanted
    views.append(_change(own, changed, noise))
  return jnp.stack(views, axis=1), wanted


def _change(keys, pixels, augmentation):
  """Makes all changes of an augmentation, in the order of `_CHANGES`."""
  for number, (name, change) in enumerate(_CHANGES.items()):
    options = getattr(augmentation, name)
    if options is not None:
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      pixels = jax.vmap(functools.partial(change, *options))(own, pixels)
  return pixels


def _crop(crop, stretch, flip, most, key, image):
  """Enlarges a random part of an image, as two products with matrices."""
  height, width, _ = image.shape
  draws = jax.random.uniform(key, (5,), image.dtype)
  area = crop + (most - crop) * draws[0]
  ratio = jnp.exp(jnp.log(stretch) * (draws[1] - 0.5))  # root of width / height
  root = jnp.sqrt(area)
  tall, wide = jnp.minimum(root / ratio, 1), jnp.minimum(root * ratio, 1)
  rows = _interpolate(height, draws[2] * (1 - tall), tall)
  columns = _interpolate(width, draws[3] * (1 - wide), wide)
  columns = jnp.where(draws[4] < flip, columns[::-1], columns)
  return _separable(rows, columns, image)


def _interpolate(size, start, share):
  """The matrix `[size, size]` that enlarges a share of a line to all of it."""
  number = jnp.arange(size, dtype=jnp.float32)
  place = (start + share * (number + 0.5) / size) * size - 0.5
  place = jnp.clip(place, 0, size - 1)
  return jnp.maximum(1 - jnp.abs(place[:, None] - number[None]), 0)


def _separable(rows, columns, image):
  """`rows [H, H] image [H, W, C] columns^T`, channel by channel."""
  return jnp.einsum(
    'ih,hwc,jw->ijc', rows, image, columns, precision=lax.Precision.HIGHEST
  )


def _move(max_shift, max_rotation, key, image):
  """Rotates an image about its center, then shifts it.

  Pixels that come from beyond the edge are 0.
  """
  draws = jax.random.uniform(key, (3,), image.dtype, minval=-1)
  shift, angle = max_shift * draws[:2], jnp.deg2rad(max_rotation * draws[2])
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


def _blur(largest, key, image):
  """A Gaussian blur, as two products with matrices."""
  deviation = jnp.maximum(largest * jax.random.uniform(key), 1e-3)

  def weights(size):
    number = jnp.arange(size, dtype=image.dtype)
    apart = jnp.square((number[:, None] - number[None]) / deviation)
    kernel = jnp.exp(-apart / 2)
    return kernel / kernel.sum(axis=1, keepdims=True)

  return _separable(weights(image.shape[0]), weights(image.shape[1]), image)


def _tone(contrast, brightness, key, image):
  draws = jax.random.uniform(key, (2,), image.dtype, minval=-1)
  mean = image.mean()
  image = mean + (1 + contrast * draws[0]) * (image - mean)
  return jnp.clip((1 + brightness * draws[1]) * image, 0, 1)


def _pattern(depth, key, image):
  """Darkens an image by random patches, coarse and smooth or fine and sharp.

  Their depth is up to `depth` times the image; a share of the views has none.
  """
  height, width, _ = image.shape
  keys = jax.random.split(key, 4)
  coarse = jax.random.uniform(keys[0], _COARSE, image.dtype)
  coarse = jax.image.resize(coarse, (height, width), 'linear')
  half = -(-height // 2), -(-width // 2)
  fine = jax.random.uniform(keys[1], half, image.dtype)
  fine = fine.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
  patches = jnp.where(jax.random.bernoulli(keys[2]), coarse, fine)
  drawn = jax.random.uniform(keys[3], (), image.dtype, -_PLAIN, 1 - _PLAIN)
  strength = depth * jnp.maximum(drawn, 0) / (1 - _PLAIN)
  return image * (1 - strength * patches[..., None])


def _erase(largest, key, image):
  """Sets a random rectangle to 0."""
  height, width, _ = image.shape
  draws = jax.random.uniform(key, (4,), image.dtype)
  area = largest * draws[0]
  tall = jnp.clip(jnp.sqrt(area) * jnp.exp(draws[1] - 0.5), 0, 1)
  wide = jnp.where(tall > 0, jnp.minimum(area / jnp.maximum(tall, 1e-6), 1), 0)

  def inside(size, start, share):
    place = (jnp.arange(size, dtype=image.dtype) + 0.5) / size
    start = start * (1 - share)
    return (place >= start) & (place < start + share)

  rows = inside(height, draws[2], tall)[:, None, None]
  columns = inside(width, draws[3], wide)[None, :, None]
  return jnp.where(rows & columns, 0, image)


def _noise(deviation, key, image):
  drawn = jax.random.normal(key, image.shape, image.dtype)
  return jnp.clip(image + deviation * drawn, 0, 1)


# Group of options -> how an image [H, W, C] changes, in this order.
_CHANGES = {
  'motion': _move,
  'noise': _noise,
  'crop': _crop,
  'blur': _blur,
  'tone': _tone,
  'pattern': _pattern,
  'erase': _erase,
}

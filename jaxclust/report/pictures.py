"""Images as files have them, and sheets of several.

Axes: N images, H height, W width, C channels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def sheet(images: np.ndarray, num_columns: int, gap: int = 0) -> np.ndarray:
  """Lays images `[N, H, W, C]` out row by row on grey, with pixels of grey as a
  gap below and to the right of each image.

  Returns:
    `[ceil(N / num_columns) (H + gap), num_columns (W + gap), C]` uint8.
  """
  padding = (0, -len(images) % num_columns), (0, gap), (0, gap), (0, 0)
  cells = np.pad(as_bytes(images), padding, constant_values=128)
  _, height, width, channels = cells.shape
  cells = cells.reshape(-1, num_columns, height, width, channels)
  return cells.swapaxes(1, 2).reshape(-1, num_columns * width, channels)


def as_bytes(images: np.ndarray) -> np.ndarray:
  """Returns images as uint8: floats are clipped to 0 to 1 and scaled to 255.

  >>> as_bytes(np.array([-1.0, 0.2, 1.0])).tolist()
  [0, 51, 255]
  """
  if images.dtype == np.uint8:
    return images
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def to_unit(images: np.ndarray, *others: np.ndarray) -> tuple:
  """Images, and others with values of their kind, from 0 to 1; bytes stay."""
  if images.dtype == np.uint8:
    return images, *others
  low, high = min(0.0, images.min()), max(1.0, images.max())
  return tuple((a - low) / (high - low) for a in (images, *others))


def save_image(path: Path, image: np.ndarray, **options: Any) -> Path:
  """Writes an image `[H, W, C]`, see `as_bytes`, with options of Pillow's."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(as_file(as_bytes(image))).save(path, **options)
  return path


def as_file(image):
  """An image `[H, W, C]` as the file formats take it: `[H, W]`, its
  first channel, unless C is 3 or 4."""
  return image if image.shape[2] in (3, 4) else image[..., 0]

"""Image sets as arrays, and augmentation of their mini-batches.

Importing this package loads no library that reads a single kind of source.
"""

from jaxclust.data.images import (
  Dataset,
  as_size,
  digest,
  read_npz,
  with_channels,
)
from jaxclust.data.sources import load

__all__ = [
  'Dataset',
  'as_size',
  'digest',
  'load',
  'read_npz',
  'with_channels',
]

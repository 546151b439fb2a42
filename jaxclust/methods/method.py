"""What a method is to the training, the model and the experiments.

Axes: B batch, H height, W width, C channels, N images, D numbers of an
embedding, K clusters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxclust.algorithms.assignment import Assigner


class Batch(NamedTuple):
  """What a loss sees of some images."""

  seen: jax.Array  # [B, H, W, C] in [0, 1], with what was drawn of them
  wanted: jax.Array  # [B, H, W, C] the same without noise
  targets: Any  # pytree of [B, ...], from `Method.targets`


class Method(NamedTuple):
  """A representation that is trained on images, as functions of parameters.

  The functions are of one network; training runs several side by side.
  """

  init: Callable  # (key, params of the stage before or None) -> params
  loss: Callable  # (params, Batch) -> losses [B]
  embed: Callable  # (params, pixels [B, H, W, C]) -> [B, D]
  decode: Callable  # (params, embeddings [B, D]) -> [B, H, W, C]
  operations: int  # of the embedding and the reconstruction of one image
  code_size: int  # D
  start: Callable | None = None  # (key, params, embeddings [N, D]) -> params
  targets: Callable | None = None  # (params, embeddings [N, D]) -> [N, ...]
  assigner: Assigner | None = None  # None: an algorithm clusters embeddings
  clusters: Callable | None = None  # params -> what the assigner takes
  check: Callable = lambda num_images: None  # raises an InputError

"""What a method is to the training, the model and the experiments.

Axes: V views, B batch, H height, W width, C channels, N images, D numbers of an
embedding, K clusters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms.assignment import Assigner
from jaxclust.frames import dot


class Batch(NamedTuple):
  """What a loss sees of some images: a device's share of a mini-batch."""

  views: jax.Array  # [B, V, H, W, C] in [0, 1], with what was drawn of them
  wanted: jax.Array  # [B, H, W, C] the first view without noise
  weight: jax.Array  # [B] 1, or 0 for padding
  targets: Any  # pytree of [B, ...], from `Method.targets`
  keys: jax.Array | None = None  # [B] of what a loss draws


class Method(NamedTuple):
  """A representation that is trained on images, as functions of parameters.

  The functions are of one network; training runs several side by side. A loss
  is `(params, batch, step, pool) -> []`, the device's share of the loss, summed
  over images: `pool` sums arrays over the devices that share the mini-batch.
  A method without loss is not trained itself.
  """

  init: Callable  # (key, params of the stage before or None) -> params
  loss: Callable | None  # (params, Batch, step [], pool) -> []
  embed: Callable  # (params, pixels [B, H, W, C]) -> [B, D]
  operations: int  # of one image, forward
  code_size: int  # D
  decode: Callable | None = None  # (params, embeddings [B, D]) -> [B, H, W, C]
  num_views: int = 1
  couples: bool = False  # whether the images of a batch see one another
  start: Callable | None = None  # (key, params, embeddings [N, D]) -> params
  # (params, embeddings [N, D], targets of the epoch before or None) -> a pytree
  # of [N, ...]
  targets: Callable | None = None
  finish: Callable | None = None  # (params, pixels [B, H, W, C]) -> params
  complain: Callable | None = None  # params -> messages of what went wrong
  assigner: Assigner | None = None  # None: an algorithm clusters embeddings
  clusters: Callable | None = None  # params -> what the assigner takes
  # (params, embeddings [N, D]) -> [A, N] clusters, under any names, by its
  # parts: heads that do not answer, or members
  opinions: Callable | None = None
  check: Callable = lambda num_images: None  # raises an InputError


def apply_network(network: Any, method: str, params: dict, x: jax.Array) -> Any:
  """What a method of a Linen module makes of x, by `params['network']`."""
  return network.apply(params['network'], x, method=method)


def per_image(losses_of: Callable, network: Any) -> Callable:
  """The loss of a method whose images do not see one another.

  It is the weighted sum of `losses_of(params, Batch) -> [B]`. A CPU takes a
  part of the batch at a time, as the network asks for.
  """

  def loss(params, batch, step, pool):
    del step, pool
    own = functools.partial(losses_of, params)
    in_parts = functools.partial(_in_parts, own, network.part)
    losses = lax.platform_dependent(batch, cpu=in_parts, default=own)
    return dot(batch.weight, losses)

  return loss


def _in_parts(fn, most, batch):
  """`fn` of parts of at most `most` rows of a pytree `[B, ...]`, `[B]`; of all
  of them if it is 0."""
  num_rows = len(batch.weight)
  if not most or num_rows <= most:
    return fn(batch)
  num_parts = -(-num_rows // most)
  size = -(-num_rows // num_parts)

  def split(array):
    missing = num_parts * size - num_rows  # fewer than there are
    array = jnp.concatenate([array, array[:missing]])
    return array.reshape(num_parts, size, *array.shape[1:])

  return lax.map(fn, jax.tree.map(split, batch)).reshape(-1)[:num_rows]

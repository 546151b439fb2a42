"""Heads: small networks that cluster an embedding, several beside each other.

They agree with one another where they are right; the one that agrees most is
the answer.

Axes: N images, B batch, D numbers of an embedding, G heads, K clusters.

Reference:
  Ji, Henriques and Vedaldi (2019), Invariant information clustering for
    unsupervised image classification and segmentation,
    https://arxiv.org/abs/1807.06653
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust.algorithms.assignment import Assigner, by_shares
from jaxclust.algorithms.consensus import agreement
from jaxclust.frames import dot
from jaxclust.methods.method import Batch
from jaxclust.networks import BatchNorm

# Width of the hidden layer.
_HIDDEN = 256

_dense = functools.partial(nn.Dense, precision=lax.Precision.HIGHEST)


class TwoLayers(nn.Module):
  """A hidden layer, normalised by the batch, and a linear one."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, mean_of: Any = None) -> jax.Array:
    x = nn.relu(BatchNorm()(_dense(_HIDDEN, use_bias=False)(x), mean_of))
    return _dense(self.width)(x)


def init(head: nn.Module, key: jax.Array, num_heads: int, size: int) -> dict:
  """Parameters of heads on embeddings of a size D, without clusters yet."""
  code = jnp.zeros((1, size))
  init_heads = jax.vmap(head.init, (0, None))
  return {
    'heads': init_heads(jax.random.split(key, num_heads), code),
    'choice': jnp.zeros(()),  # the number of the head that answers
    'centers': jnp.zeros((head.width, size)),
    'shares': jnp.zeros(head.width),  # of the clusters, in some images
  }


def logits(
  head: nn.Module, heads: Any, code: jax.Array, mean_of: Any = None
) -> jax.Array:
  """Logits `[G, B, K]` of embeddings `[B, D]`."""
  return jax.vmap(head.apply, (0, None, None))(heads, code, mean_of)


def views_of(
  batch: Batch, pool: Callable, count: jax.Array
) -> tuple[jax.Array, Callable]:
  """The views of a batch one after another `[V B, H, W, C]`, and the function
  that takes what a network makes of them to means `[C]` over all devices.

  Args:
    batch: a device's share.
    pool: as for a loss.
    count: number of images of the whole batch.
  """
  num_images, num_views = batch.views.shape[:2]
  views = batch.views.swapaxes(0, 1)
  weight = jnp.tile(batch.weight, num_views)

  def mean_of(x):
    means = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
    return pool(dot(weight, means)) / (num_views * count)

  return views.reshape(num_views * num_images, *views.shape[2:]), mean_of


def mean_of_all(x: jax.Array) -> jax.Array:
  """Means `[C]` of `[B, ..., C]`, for `BatchNorm`."""
  return x.reshape(-1, x.shape[-1]).mean(axis=0)


def keep_moments(apply: Any, variables: Any, x: jax.Array, **options: Any):
  """What a module makes of x, and its variables with the moments of x."""
  output, moments = apply(
    variables, x, mean_of_all, mutable='moments', **options
  )
  return output, variables | moments


def finish(head: nn.Module, heads: Any, code: jax.Array) -> dict:
  """Parameters as of `init`, with what heads find in embeddings `[N, D]`."""
  found, heads = jax.vmap(lambda own: keep_moments(head.apply, own, code))(
    heads
  )
  labels = found.argmax(axis=2)
  choice = agreement(labels, head.width).argmax()
  inside = jax.nn.one_hot(labels[choice], head.width, axis=0)
  sizes = jnp.maximum(inside.sum(axis=1), 1)
  return {
    'heads': heads,
    'choice': choice.astype(jnp.float32),
    'centers': dot(inside, code) / sizes[:, None],
    'shares': inside.mean(axis=1),
  }


def complain(params: Any, balance: float) -> Iterator[str]:
  """Says if one cluster took over."""
  largest, count = float(params['shares'].max()), len(params['shares'])
  if largest > max(0.9, 1.5 / count):
    yield (
      f'one cluster has {largest:.0%} of the images: raise balance, which is '
      f'{balance:g}, or weaken the views'
    )


def clusters(params: Any) -> dict:
  """What `assigner_of` takes: the head that answers, and its centers."""
  choice = params['choice'].astype(jnp.int32)
  own = jax.tree.map(lambda a: a[choice], params['heads'])
  return {'head': own, 'centers': params['centers']}


def opinions(head: nn.Module, params: Any, x: jax.Array) -> jax.Array:
  """Clusters `[G - 1, N]` of embeddings `[N, D]` by the heads that do not
  answer."""
  found = lax.map(
    lambda own: head.apply(own, x).argmax(axis=1), params['heads']
  )
  others = np.arange(len(found)) != int(params['choice'])
  return found[np.flatnonzero(others)]


def assigner_of(head: nn.Module) -> Assigner:
  """What a head says of embeddings."""

  @jax.jit
  def probabilities(clusters, x):
    return jax.nn.softmax(head.apply(clusters['head'], x), axis=1)

  return by_shares(probabilities, lambda clusters: clusters['centers'])

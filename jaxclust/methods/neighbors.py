"""Heads that give an image the cluster of its nearest neighbours.

A last stage on any embedding. A view of an image must get the cluster that the
heads see in the clean images next to it (SCAN), or, once most images are sure
of theirs, the cluster that they see in the clean image itself (self-labelling).
Neighbours are those in the embedding that the stage begins with; what the heads
see of them is found anew before each epoch. Network and heads train together.

Axes: B batch, V views, N images, D numbers of an embedding, K clusters,
G heads.

Reference:
  Van Gansbeke, Vandenhende, Georgoulis, Proesmans and Van Gool (2020), SCAN:
    learning to classify images without labels, https://arxiv.org/abs/2005.12320
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxclust import checks
from jaxclust.algorithms.consensus import entropy
from jaxclust.algorithms.neighbors import nearest
from jaxclust.frames import dot, unit_rows
from jaxclust.methods import heads
from jaxclust.methods.method import Method, apply_network


@functools.cache
def neighbors(
  network: nn.Module,
  *,
  num_clusters: int,
  num_heads: int = 4,
  num_neighbors: int = 10,
  balance: float = 5.0,
) -> Method:
  """Heads that learn from neighbours.

  Args:
    network: of `networks`; its parameters are those of the stage before.
    num_clusters: K.
    num_heads: G, unless the stage before has heads, which then go on.
    num_neighbors: of an image, by the cosine of their embeddings.
    balance: weight of the clusters' entropy; a large one presumes clusters of
      about equal size.
  """

  def targets(params, x, last):
    found = nearest(unit_rows(x), num_neighbors)[0] if last is None else last[0]
    shares = _shares(params, x)
    total = sum(shares[found[:, n]] for n in range(num_neighbors))
    return found, total / num_neighbors

  def check(num_images):
    _check(num_images, num_clusters, num_heads, balance)
    checks.check_count('num_neighbors', num_neighbors, high=num_images - 1)

  def losses_of(shares, targets):
    """`-log <p, q>` of shares p of a view and q of the neighbours."""
    agree = (shares * targets[1].swapaxes(0, 1)).sum(axis=-1)
    return -jnp.log(jnp.maximum(agree, 1e-8)), jnp.ones_like(agree)

  return _method(
    network, num_clusters, num_heads, balance, targets, losses_of, check
  )


@functools.cache
def self_labels(
  network: nn.Module,
  *,
  num_clusters: int,
  num_heads: int = 4,
  confidence: float = 0.9,
  balance: float = 0.0,
) -> Method:
  """Heads that learn from what they are sure of.

  Args:
    network: of `networks`; its parameters are those of the stage before.
    num_clusters: K.
    num_heads: G, unless the stage before has heads, which then go on.
    confidence: least share of a cluster in an image that teaches.
    balance: weight of the clusters' entropy.
  """

  def targets(params, x, last):
    del last
    shares = _shares(params, x)
    is_sure = shares.max(axis=2, keepdims=True) >= confidence
    labels = jax.nn.one_hot(shares.argmax(axis=2), num_clusters)
    return jnp.where(is_sure, labels, 0)

  def check(num_images):
    _check(num_images, num_clusters, num_heads, balance)
    checks.check_number('confidence', confidence, high=1)

  def losses_of(shares, targets):
    """Cross-entropies of the views with labels, where there are some."""
    targets = targets.swapaxes(0, 1)
    logs = jnp.log(jnp.maximum(shares, 1e-8))
    return -(targets * logs).sum(axis=-1), targets.sum(axis=-1)

  return _method(
    network, num_clusters, num_heads, balance, targets, losses_of, check
  )


def _check(num_images, num_clusters, num_heads, balance):
  checks.check_groups('num_clusters', num_clusters, num_images)
  checks.check_count('num_heads', num_heads)
  checks.check_number('balance', balance)


def _shares(params, x):
  """Shares `[N, G, K]` of the clusters in embeddings `[N, D]`."""
  width = params['shares'].shape[0]
  head = heads.TwoLayers(width)
  logits = lax.map(lambda own: head.apply(own, x), params['heads'])
  return jax.nn.softmax(logits, axis=2).swapaxes(0, 1)


def _method(
  network, num_clusters, num_heads, balance, targets, losses_of, check
):
  """A method whose heads learn `targets` by `losses_of`."""
  head, size = heads.TwoLayers(num_clusters), network.code_size()

  def init(key, previous):
    if previous is None:
      blank = jnp.zeros((1, *network.image_shape))
      previous = network.init(key, blank, method='encode')
    own = heads.init(head, key, num_heads, size)
    if 'heads' in previous:
      heads.logits(head, previous['heads'], jnp.zeros((1, size)))
      own |= {'heads': previous['heads']}
    return own | {'network': previous.get('network', previous)}

  def loss(params, batch, step, pool):
    del step
    count = pool(batch.weight.sum())
    views, mean_of = heads.views_of(batch, pool, count)
    code = network.apply(params['network'], views, mean_of, method='encode')
    logits = heads.logits(head, params['heads'], code, mean_of)
    shares = jax.nn.softmax(logits, axis=2)  # [G, B, K]
    losses, weights = losses_of(shares, batch.targets)
    weights = weights * batch.weight[None]
    total = pool(jnp.stack([(losses * weights).sum(1), weights.sum(1)]))
    taught = total[0] / jnp.maximum(total[1], 1)
    mean = pool(dot(batch.weight, shares)) / count  # [G, K]
    own = taught - balance * entropy(mean, -1)
    return own.sum() * batch.weight.sum()

  def finish(params, pixels):
    code, encoder = heads.keep_moments(
      network.apply, params['network'], pixels, method='encode'
    )
    return params | {
      **heads.finish(head, params['heads'], code),
      'network': encoder,
    }

  return Method(
    init=init,
    loss=loss,
    embed=functools.partial(apply_network, network, 'encode'),
    operations=network.count_operations(),
    code_size=size,
    couples=True,
    targets=targets,
    finish=finish,
    complain=functools.partial(heads.complain, balance=balance),
    assigner=heads.assigner_of(head),
    clusters=heads.clusters,
    opinions=functools.partial(heads.opinions, head),
    check=check,
  )

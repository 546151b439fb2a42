"""Prototypes with balanced assignments, and heads that cluster what they see.

Several views of an image must be assigned to the same prototypes (SwAV): the
shares of one view are predicted from the other, and over a batch all prototypes
get equal shares. Heads on the representation, which they do not change, learn K
clusters: a cluster must tell as much as it can about the prototypes of another
view, while the clusters stay of similar size (regularised information
maximisation). The heads agree with one another where they are right; the one
that agrees most is the answer.

Axes: B batch, V views, D numbers of an embedding, M prototypes, K clusters,
G heads.

References:
  Caron et al. (2020), Unsupervised learning of visual features by contrasting
    cluster assignments, https://arxiv.org/abs/2006.09882
  Ntelemis, Jin and Thomas (2022), Information maximization clustering via
    multi-view self-labelling, https://doi.org/10.1016/j.knosys.2022.109042
  Krause, Perona and Gomes (2010), Discriminative clustering by regularized
    information maximization
"""

import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxclust import checks
from jaxclust.algorithms.consensus import entropy
from jaxclust.frames import dot, unit_rows
from jaxclust.methods import heads
from jaxclust.methods.method import Method, apply_network

# Numbers of the space of the prototypes.
_SPACE = 128

# Rounds in which assignments are balanced.
_ROUNDS = 3

# Size of a logit that costs nothing, and what one more costs.
_FREE_LOGIT, _LOGIT_COST = 5.0, 0.01

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class _Parts(NamedTuple):
  """Modules and options, which all functions of the method share."""

  network: nn.Module
  projector: nn.Module
  head: nn.Module
  num_heads: int
  num_prototypes: int
  num_views: int
  balance: float
  temperature: float
  sharpness: float
  frozen_steps: int


@functools.cache
def prototypes(
  network: nn.Module,
  *,
  num_clusters: int,
  num_heads: int = 4,
  num_prototypes: int = 300,
  num_views: int = 2,
  balance: float = 4.0,
  temperature: float = 0.1,
  sharpness: float = 0.05,
  frozen_steps: int = 300,
) -> Method:
  """The method of a network.

  Args:
    network: of `networks`, that encodes.
    num_clusters: K.
    num_heads: G.
    num_prototypes: M.
    num_views: V, at least 2; the first two are assigned, all are predicted.
    balance: weight of the clusters' entropy; a large one presumes clusters of
      about equal size.
    temperature: of predicted shares.
    sharpness: temperature of the assignments, below the other.
    frozen_steps: first steps in which prototypes stay where they are.
  """

  head = heads.TwoLayers(num_clusters)
  parts = _Parts(
    network=network,
    projector=heads.TwoLayers(_SPACE),
    head=head,
    num_heads=num_heads,
    num_prototypes=num_prototypes,
    num_views=num_views,
    balance=balance,
    temperature=temperature,
    sharpness=sharpness,
    frozen_steps=frozen_steps,
  )
  return Method(
    init=functools.partial(_init, parts),
    loss=functools.partial(_loss, parts),
    embed=functools.partial(apply_network, network, 'encode'),
    operations=num_views * network.count_operations(),
    code_size=network.code_size(),
    num_views=num_views,
    couples=True,
    finish=functools.partial(_finish, parts),
    complain=functools.partial(_complain, parts),
    assigner=heads.assigner_of(head),
    clusters=heads.clusters,
    opinions=functools.partial(heads.opinions, head),
    check=functools.partial(_check, parts),
  )


def _check(parts, num_images):
  checks.check_groups('num_clusters', parts.head.width, num_images)
  checks.check_count('num_heads', parts.num_heads)
  checks.check_count('num_prototypes', parts.num_prototypes)
  checks.check_count('num_views', parts.num_views, low=2)
  checks.check_count('frozen_steps', parts.frozen_steps, low=0)
  checks.check_number('balance', parts.balance)
  checks.check_number('temperature', parts.temperature, 0.01, 10)
  checks.check_number('sharpness', parts.sharpness, 0.02, 10)


def _init(parts, key, previous):
  keys, network = jax.random.split(key, 4), parts.network
  if previous is None:
    blank = jnp.zeros((1, *network.image_shape))
    previous = network.init(keys[0], blank, method='encode')
  size = network.code_size()
  points = jax.random.normal(keys[2], (parts.num_prototypes, _SPACE))
  return heads.init(parts.head, keys[3], parts.num_heads, size) | {
    'network': previous,
    'projector': parts.projector.init(keys[1], jnp.zeros((1, size))),
    'prototypes': unit_rows(points),
    'used': jnp.zeros(()),  # share of prototypes that are nearest to one
  }


def _loss(parts, params, batch, step, pool):
  """The sum of both losses; the heads' does not reach the network."""
  count = pool(batch.weight.sum())
  cosines, logits = _forward(parts, params, batch, step, pool, count)
  predicted = jax.nn.log_softmax(cosines / parts.temperature, axis=2)
  views = range(parts.num_views)
  pairs = [p for p in itertools.permutations(views, 2) if p[0] < 2]

  def mean_of_pairs(fn):
    return pool(sum(fn(*pair) for pair in pairs)) / (len(pairs) * count)

  targets = [
    balanced(lax.stop_gradient(one), batch.weight, pool, parts.sharpness)
    for one in cosines[:2]
  ]
  swapped = mean_of_pairs(
    lambda a, b: -dot(batch.weight, (targets[a] * predicted[b]).sum(axis=1))
  )
  chances = lax.stop_gradient(jnp.exp(predicted))
  shares = jax.nn.softmax(logits, axis=3) * batch.weight[None, None, :, None]
  joint = mean_of_pairs(
    lambda a, b: _einsum('gbk,bm->gkm', shares[:, a], chances[b])
  )
  excess = nn.relu(jnp.abs(logits) - _FREE_LOGIT).sum(axis=(0, 1, 3))
  excess = pool(dot(batch.weight, excess)) / (parts.num_views * count)
  informed = information_loss(joint, parts.balance).sum()
  total = swapped + informed + _LOGIT_COST * excess
  return total * batch.weight.sum()


def _forward(parts, params, batch, step, pool, count):
  """Cosines `[V, B, M]` with the prototypes, and logits `[G, V, B, K]`."""
  num_images, num_views = batch.views.shape[:2]
  views, mean_of = heads.views_of(batch, pool, count)
  code = parts.network.apply(params['network'], views, mean_of, method='encode')
  place = unit_rows(parts.projector.apply(params['projector'], code, mean_of))
  points = params['prototypes']
  is_frozen = step < parts.frozen_steps
  points = jnp.where(is_frozen, lax.stop_gradient(points), points)
  cosines = dot(place, unit_rows(points).T)
  logits = heads.logits(
    parts.head, params['heads'], lax.stop_gradient(code), mean_of
  )
  return (
    cosines.reshape(num_views, num_images, -1),
    logits.reshape(-1, num_views, num_images, parts.head.width),
  )


def _finish(parts, params, pixels):
  """Keeps the moments of clean images, and the head that agrees most."""
  network, projector, head = parts[:3]
  code, encoder = heads.keep_moments(
    network.apply, params['network'], pixels, method='encode'
  )
  place, project = heads.keep_moments(
    projector.apply, params['projector'], code
  )
  cosines = dot(unit_rows(place), unit_rows(params['prototypes']).T)
  used = jnp.zeros(cosines.shape[1]).at[cosines.argmax(axis=1)].set(1)
  return params | {
    **heads.finish(head, params['heads'], code),
    'network': encoder,
    'projector': project,
    'used': used.mean(),
  }


def _complain(parts, params):
  yield from heads.complain(params, parts.balance)
  used = float(params['used'])
  if used < 0.1:
    yield (
      f'only {used:.0%} of {parts.num_prototypes} prototypes are in use: lower '
      'sharpness or learning_rate, or ask for fewer num_prototypes'
    )


def balanced(
  cosines: jax.Array, weight: jax.Array, pool: Any, sharpness: float
) -> jax.Array:
  """Assignments `[B, M]` of images to prototypes that get equal shares.

  Args:
    cosines: `[B, M]`.
    weight: `[B]` of the images.
    pool: as for a loss.
    sharpness: temperature; a cosine is at most 1, so that nothing overflows.

  Returns:
    Rows that sum to one, by some rounds of Sinkhorn's algorithm.
  """
  shares = jnp.exp((cosines - 1) / sharpness) * weight[:, None]
  for _ in range(_ROUNDS):
    shares = shares / jnp.maximum(pool(shares.sum(axis=0)), 1e-30)[None]
    shares = shares / jnp.maximum(shares.sum(axis=1), 1e-30)[:, None]
  return shares


def information_loss(joint: jax.Array, balance: float) -> jax.Array:
  """`H(Y | U) - balance H(Y)` of joint distributions `[..., K, M]` of Y, U."""
  given = entropy(joint, (-2, -1)) - entropy(joint.sum(axis=-2), -1)
  return given - balance * entropy(joint.sum(axis=-1), -1)

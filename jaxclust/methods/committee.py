"""Trained methods that vote on the clusters of an image, as one method.

Its embedding is that of all members beside each other. The majority that agrees
most with the others votes. A member calls its clusters after those of the one
that agrees most.

Axes: S members, N images, D numbers of all embeddings, K clusters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust.algorithms import consensus
from jaxclust.algorithms.assignment import by_shares
from jaxclust.methods.method import Method


@functools.cache
def committee(methods: tuple[Method, ...]) -> Method:
  """The method of members that have clusters, which is not trained itself.

  Its parameters are those of the members, their weights and the names of their
  clusters; see `convene`.
  """
  cuts = np.cumsum([method.code_size for method in methods])

  def init(key, previous):
    del previous
    members = tuple(method.init(key, None) for method in methods)
    names = len(methods), num_clusters_of(methods[0])
    return {
      'members': members,
      'weights': jnp.zeros(len(methods)),
      'names': jnp.zeros(names, jnp.int32),
    }

  def embed(params, pixels):
    pairs = zip(methods, params['members'], strict=True)
    return jnp.concatenate([m.embed(own, pixels) for m, own in pairs], axis=1)

  def opinions(params, x):
    parts = jnp.split(x, cuts[:-1], axis=1)
    votes = [
      method.assigner.predict(method.clusters(own), part)
      for method, own, part in zip(
        methods, params['members'], parts, strict=True
      )
    ]
    return jnp.stack(votes)

  def probabilities(params, x):
    names, weights = params['names'], params['weights']
    return sum(
      weight * jax.nn.one_hot(own[vote], names.shape[1])
      for weight, own, vote in zip(
        weights, names, opinions(params, x), strict=True
      )
    )

  def centers(params):
    rows = zip(methods, params['members'], params['names'], strict=True)
    parts = [_centers(m, own)[names.argsort()] for m, own, names in rows]
    return jnp.concatenate(parts, axis=1)

  return Method(
    init=init,
    loss=None,
    embed=embed,
    operations=sum(method.operations for method in methods),
    code_size=int(cuts[-1]),
    assigner=by_shares(probabilities, centers),
    clusters=lambda params: params,
    opinions=opinions if len(methods) > 1 else None,
  )


def _centers(method, params):
  return method.assigner.centers(method.clusters(params))


def num_clusters_of(method: Method) -> int:
  """The number of clusters K of a method."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  centers = jax.eval_shape(
    lambda key: _centers(method, method.init(key, None)), key
  )
  return centers.shape[0]


def convene(
  members: tuple[Any, ...], labels: np.ndarray, num_clusters: int
) -> dict:
  """Parameters of a committee.

  Args:
    members: parameters of each.
    labels: `[S, N]`, what each finds in some images.
    num_clusters: K.
  """
  agreement = np.asarray(consensus.agreement(jnp.asarray(labels), num_clusters))
  first, *others = np.argsort(-agreement, kind='stable')
  majority = [first, *others[: len(members) // 2]]
  weights = np.zeros(len(members), np.float32)
  weights[majority] = 1 / len(majority)
  return {
    'members': members,
    'weights': jnp.asarray(weights),
    'names': jnp.asarray(consensus.align(labels, first, num_clusters)),
  }

"""One answer from several clusterings of the same points.

Axes: S clusterings, N points, K clusters.

Reference:
  Strehl and Ghosh (2002), Cluster ensembles,
    https://www.jmlr.org/papers/v3/strehl02a.html
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import optimize, stats


@functools.partial(jax.jit, static_argnums=1)
def agreement(labels: jax.Array, num_clusters: int) -> jax.Array:
  """The mean normalised mutual information `[S]` of each clustering of
  `[S, N]` with the others; 0 if there are none.

  >>> agreement(np.array([[0, 0, 1, 1], [1, 1, 0, 0]]), 2).round(3).tolist()
  [1.0, 1.0]
  """
  joint = _joint(labels, num_clusters) / labels.shape[1]
  rows, columns = entropy(joint.sum(axis=3), 2), entropy(joint.sum(axis=2), 2)
  information = rows + columns - entropy(joint, (2, 3))
  found = 2 * information / jnp.maximum(rows + columns, 1e-30)
  others = 1 - jnp.eye(len(labels))
  return (found * others).sum(axis=1) / jnp.maximum(others.sum(axis=1), 1)


def _joint(labels, num_clusters):
  """Counts `[S, S, K, K]` of points by their clusters in each pair."""
  one = jax.nn.one_hot(labels, num_clusters)
  return jnp.einsum('snk,tnl->stkl', one, one, precision=lax.Precision.HIGHEST)


def entropy(p: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
  """The entropy of probabilities along some axes, in nats."""
  return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(axis=axes)


def align(labels: np.ndarray, reference: int, num_clusters: int) -> np.ndarray:
  """The cluster of the reference that each cluster matches best, `[S, K]`.

  Args:
    labels: `[S, N]`.
    reference: the number of one of the clusterings.
    num_clusters: K.
  """
  names = np.zeros((len(labels), num_clusters), np.int32)
  for own, row in zip(names, labels, strict=True):
    counts = np.zeros((num_clusters, num_clusters), np.int64)
    np.add.at(counts, (row, labels[reference]), 1)
    own[:] = optimize.linear_sum_assignment(counts, maximize=True)[1]
  return names


def vote(labels: np.ndarray, names: np.ndarray) -> np.ndarray:
  """The cluster `[N]` int32 that most clusterings give a point.

  >>> labels = np.array([[0, 1, 1], [1, 0, 0], [0, 1, 0]])
  >>> vote(labels, align(labels, 0, 2)).tolist()
  [0, 1, 1]

  Args:
    labels: `[S, N]`.
    names: `[S, K]` from `align`, on the same or on other points.
  """
  counts = np.zeros((labels.shape[1], names.shape[1]), np.int32)
  for own, row in zip(names, labels, strict=True):
    counts[np.arange(len(row)), own[row]] += 1
  return counts.argmax(axis=1).astype(np.int32)


def rank_correlation(
  criterion: Sequence[float | None], scores: Sequence[float]
) -> float | None:
  """Spearman's correlation of a criterion with scores, from -1 to 1; None for
  fewer than three, where all of one are equal, or where a value is missing.

  >>> rank_correlation([0.2, 0.5, 0.9], [0.6, 0.7, 0.75])
  1.0
  """
  few = min(len(set(criterion)), len(set(scores))) < 2
  if len(scores) < 3 or few or None in criterion:
    return None
  return round(float(stats.spearmanr(criterion, scores).statistic), 12)

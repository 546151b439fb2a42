"""Clusters that neighbours agree upon.

Neighbours in an embedding mostly belong together, also where a boundary of
clusters runs between them. So each point takes over what its neighbours say:
its shares of the clusters become a mean of theirs and, with a small weight, of
its own before, which are those of other clusters (label spreading).

Axes: N points, D features, d numbers that are compared, n neighbours,
K clusters.

Reference:
  Zhou, Bousquet, Lal, Weston and Schoelkopf (2004), Learning with local and
    global consistency, https://papers.nips.cc/paper/2506
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust import checks
from jaxclust.algorithms.assignment import Assigner, by_shares
from jaxclust.algorithms.neighbors import nearest_in
from jaxclust.frames import dot, unit_rows

# Maximum numbers that are compared of a point; they have nearly all of it.
_COMPARED = 128

# Largest change of shares in a step that is their last.
_CHANGE = 1e-5

# Maximum number of steps; a strength of 0.99 needs at most about 1,150.
_MOST_STEPS = 2000


class Spread(NamedTuple):
  """Points, and the shares of clusters that they agree upon."""

  basis: jax.Array  # [D, d] the directions in which points are compared
  points: jax.Array  # [N, d]
  shares: jax.Array  # [N, K]


def check(
  num_points: int, num_neighbors: int, strength: float, prefix: str = ''
) -> None:
  """Checks the options of `spread`, whose names an error gives a prefix.

  Raises:
    InputError: if they are out of range.
  """
  checks.check_count(f'{prefix}num_neighbors', num_neighbors, high=num_points)
  checks.check_number(f'{prefix}strength', strength, high=0.999)


def spread(
  x: jax.Array,
  shares: jax.Array,
  num_neighbors: int,
  strength: float = 0.99,
) -> Spread:
  """Spreads shares of clusters over the graph of neighbours.

  The new shares S of shares P satisfy `S = strength A S + (1 - strength) P`,
  where A takes the mean over the n nearest points by the cosine. A point is its
  own nearest.

  Args:
    x: `[N, D]` points.
    shares: `[N, K]`, rows that sum to one.
    num_neighbors: n, at most N.
    strength: weight of the neighbours, below 1.

  Raises:
    InputError: if an option is out of range.
  """
  check(len(x), num_neighbors, strength)
  directions = unit_rows(x)
  _, vectors = jnp.linalg.eigh(dot(directions.T, directions))
  basis = vectors[:, -_COMPARED:]
  points = dot(directions, basis)
  numbers, _ = nearest_in(points, points, num_neighbors)
  return Spread(basis, points, _spread(numbers, shares, float(strength)))


@jax.jit
def _spread(numbers, shares, strength):
  def step(state):
    old, _, count = state
    new = _mix(old, numbers, shares, strength)
    return new, jnp.all(jnp.abs(new - old) <= _CHANGE), count + 1

  def goes_on(state):
    return ~state[1] & (state[2] < _MOST_STEPS)

  return lax.while_loop(goes_on, step, (shares, False, 0))[0]


@jax.jit
def _mix(spread, numbers, own, strength):
  """Means of the shares of neighbours, and of a point's own."""
  count = numbers.shape[1]
  near = sum(spread[numbers[:, n]] for n in range(count)) / count
  return strength * near + (1 - strength) * own


def spreading(
  assigner: Assigner, num_neighbors: int, strength: float = 0.99
) -> Assigner:
  """An assigner that lets neighbours agree.

  Its clusters are a pair: those of the other assigner, and a `Spread` that
  `spread` has made of their shares. A new point takes over what its neighbours
  among the points of the spread say.
  """

  def probabilities(clusters, x):
    inner, found = clusters
    own = shares_of(assigner, inner, x)
    points = dot(unit_rows(x), found.basis)
    numbers, _ = nearest_in(found.points, points, num_neighbors)
    return _mix(found.shares, numbers, own, float(strength))

  def centers(clusters):
    return assigner.centers(clusters[0])

  shared = by_shares(probabilities, centers)

  def assign(clusters, x):
    found = shared.assign(clusters, x)
    own = assigner.assign(clusters[0], x)
    if own.outlier_score is own.distance:  # from a center, maybe another one
      return found
    return found._replace(outlier_score=own.outlier_score)

  def sample(key, clusters, num_samples):
    return assigner.sample(key, clusters[0], num_samples)

  return shared._replace(assign=assign, sample=assigner.sample and sample)


def shares_of(assigner: Assigner, clusters: Any, x: jax.Array) -> jax.Array:
  """Probabilities `[N, K]` of the clusters; where there are none, 1 for the
  cluster of a point."""
  if assigner.probabilities is not None:
    return assigner.probabilities(clusters, x)
  labels = assigner.predict(clusters, x)
  return jax.nn.one_hot(labels, len(assigner.centers(clusters)))

"""Seeding: rows of the data to start clusters from, for R restarts together.

Draws go with the content of a row and not with its place, so that the order of
rows changes nothing.

Axes: N points, D features, K clusters, R restarts, B rows of a block, T trials,
M candidates.

References:
  Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding,
    https://dl.acm.org/doi/10.5555/1283383.1283494
  Bahmani et al. (2012), Scalable k-means++,
    https://doi.org/10.14778/2180912.2180915
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust import numerics
from jaxclust.numerics import Points

# Rounds of k-means||, and rows drawn in each for a cluster.
_ROUNDS = 2
_OVERSAMPLING = 2


def plus_plus(
  keys: jax.Array,
  points: Points,
  ids: jax.Array,
  *,
  num_clusters: int,
  block_size: int,
) -> jax.Array:
  """Rows drawn far from each other (greedy k-means++).

  Each further row is the best of T = 2 + log K trials, drawn in proportion to
  the weighted squared distance to the nearest of the rows chosen so far.

  Args:
    keys: `[R]` a random key for each restart.
    points: N rows.
    ids: `[N]` of the rows, from `numerics.content_ids`.
    num_clusters: K.
    block_size: rows of a block.

  Returns:
    Indices `[R, K]` of rows.
  """
  x, sample_weight, norms, frame = points
  num_restarts = keys.shape[0]
  num_trials = 2 + int(math.log(num_clusters))
  seeds = jax.vmap(
    lambda key: jax.random.bits(key, (num_clusters, num_trials), jnp.uint32)
  )(keys)

  def draw(seed, nearest):
    mass = _mass(sample_weight, nearest)
    return jnp.argmin(numerics.arrivals(seed, ids, mass)).astype(jnp.int32)

  draw_trials = jax.vmap(jax.vmap(draw, (0, None)), (0, 1))

  def potentials(trials, nearest):
    """Inertias `[R, T]`, were each of the trials `[R, T]` chosen."""
    centers = frame.enter(x[trials.reshape(-1)])

    def part(total, block, fresh):
      x, weight, norms, nearest = block
      squared = numerics.squared_distances(frame.enter(x), centers, norms)
      squared = squared.reshape(num_restarts, num_trials, -1)
      squared = jnp.minimum(squared, nearest.T[:, None])
      return total + numerics.dot(squared, jnp.where(fresh, weight, 0)), ()

    zeros = jnp.zeros((num_restarts, num_trials), nearest.dtype)
    rows = (x, sample_weight, norms, nearest)
    return numerics.scan_blocks(part, zeros, rows, block_size)[0]

  def distances_to(indices):
    """Squared distances `[N, R]` to the rows at indices `[R]`."""
    centers = frame.enter(x[indices])
    return numerics.map_blocks(
      lambda rows: (
        numerics.squared_distances(frame.enter(rows[0]), centers, rows[1]).T
      ),
      (x, norms),
      block_size,
    )

  def choose(k, state):
    indices, nearest = state
    trials = draw_trials(seeds[:, k], nearest)
    best = jnp.argmin(potentials(trials, nearest), axis=1)[:, None]
    index = jnp.take_along_axis(trials, best, axis=1)[:, 0]
    nearest = jnp.minimum(nearest, distances_to(index))
    return indices.at[:, k].set(index), nearest

  anywhere = jnp.ones_like(sample_weight)
  first = jax.vmap(draw, (0, None))(seeds[:, 0, 0], anywhere)
  indices = jnp.repeat(first[:, None], num_clusters, axis=1)
  state = indices, distances_to(first)
  return lax.fori_loop(1, num_clusters, choose, state)[0]


def parallel(
  keys: jax.Array,
  points: Points,
  ids: jax.Array,
  *,
  num_clusters: int,
  block_size: int,
) -> jax.Array:
  """Rows drawn many at a time, then thinned by k-means++ (k-means||).

  Each of two rounds draws 2 K rows in proportion to the weighted squared
  distance to the rows drawn before. Of these candidates, weighted with the
  points they are nearest to, k-means++ chooses K. Four passes over x in place
  of 2 K; arguments as for `plus_plus`.
  """
  x, sample_weight, norms, frame = points
  many = min(_OVERSAMPLING * num_clusters, x.shape[0])
  width = x.shape[1] + _ROUNDS * many
  block_size = min(block_size, numerics.block_rows(x.shape[0], width))

  def draw(key, nearest, count):
    """Indices `[count]` of different rows, as far as there are any."""
    seed = jax.random.bits(key, dtype=jnp.uint32)
    mass = _mass(sample_weight, nearest)
    return _first_rows(numerics.arrivals(seed, ids, mass), count)

  def join(nearest, rows):
    """The distance to the nearest candidate, now that there are more."""
    centers = frame.enter(x[rows])

    def part(block):
      x, norms, nearest = block
      squared = numerics.squared_distances(frame.enter(x), centers, norms)
      return jnp.minimum(nearest, squared.min(axis=0))

    return numerics.map_blocks(part, (x, norms, nearest), block_size)

  def masses(rows):
    """The weight `[M]` of the points nearest to each candidate."""
    centers = frame.enter(x[rows])

    def part(total, block, fresh):
      x, weight, norms = block
      squared = numerics.squared_distances(frame.enter(x), centers, norms)
      _, label = numerics.nearest(squared[None])
      members = numerics.members(label, rows.shape[0], weight.dtype)
      return total + numerics.dot(members, jnp.where(fresh, weight, 0)), ()

    zeros = jnp.zeros(rows.shape[0], sample_weight.dtype)
    data = (x, sample_weight, norms)
    return numerics.scan_blocks(part, zeros, data, block_size)[0]

  def seed_one(key):
    first, last, *rounds = jax.random.split(key, 2 + _ROUNDS)
    everywhere = jnp.full_like(sample_weight, jnp.inf)
    rows = draw(first, jnp.ones_like(sample_weight), 1)
    nearest = join(everywhere, rows)
    for round_key in rounds:
      drawn = draw(round_key, nearest, many)
      nearest = join(nearest, drawn)
      rows = jnp.concatenate([rows, drawn])
    candidates = Points(x[rows], masses(rows), norms[rows], frame)
    chosen = plus_plus(
      last[None],
      candidates,
      ids[rows],
      num_clusters=num_clusters,
      block_size=min(block_size, rows.shape[0]),
    )
    return rows[chosen[0]]

  return lax.map(seed_one, keys)


def random_rows(
  keys: jax.Array,
  points: Points,
  ids: jax.Array,
  *,
  num_clusters: int,
  block_size: int,
) -> jax.Array:
  """Different rows drawn in proportion to their weights.

  The first is repeated where there are too few rows of positive weight.
  Arguments as for `plus_plus`.
  """
  del block_size
  mass = _mass(points.sample_weight, 1)

  def draw(key):
    seed = jax.random.bits(key, dtype=jnp.uint32)
    return _first_rows(numerics.arrivals(seed, ids, mass), num_clusters)

  return jax.vmap(draw)(keys)


def _mass(sample_weight, nearest):
  """What a row is drawn in proportion to; negative where it never is."""
  return jnp.where(sample_weight > 0, sample_weight * nearest, -1)


def _first_rows(times, count):
  """The earliest rows `[count]`; the first of all in place of those that never
  arrive."""
  early, rows = lax.top_k(-times, count)
  return jnp.where(jnp.isfinite(early), rows, rows[0])


SEEDINGS = {
  'k-means++': plus_plus,
  'k-means||': parallel,
  'random': random_rows,
}

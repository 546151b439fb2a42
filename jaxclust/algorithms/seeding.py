"""Seeding: rows to start clusters from, for R runs together.

A row is drawn in an exponential race: the time of its arrival depends on the
seed of the draw and on the number of the row among those of positive weight, so
that padding, blocks and devices change no draw.

Axes: N rows, D features, K clusters, R runs, B rows of a block, T trials,
M candidates.

References:
  Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding,
    https://dl.acm.org/doi/10.5555/1283383.1283494
  Bahmani et al. (2012), Scalable k-means++,
    https://doi.org/10.14778/2180912.2180915
  Efraimidis and Spirakis (2006), Weighted random sampling with a reservoir,
    https://doi.org/10.1016/j.ipl.2005.11.003
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms.distances import nearest, one_hot, squared_distances
from jaxclust.algorithms.solver import each_run
from jaxclust.frames import dot
from jaxclust.inputs import bucket
from jaxclust.rows import (
  Rows,
  compiled,
  cumulate,
  map_rows,
  reduce_rows,
  top_rows,
)

# Rounds of k-means||, and rows drawn in each for a cluster.
_ROUNDS, _OVERSAMPLING = 2, 2

# Rows that stand for a stream when its seeds are drawn.
_SAMPLE = 2**17


def number_rows(rows: Rows) -> jax.Array:
  """The number `[N]` int32 of each row among those of positive weight."""
  return cumulate(rows, (rows.weight > 0).astype(np.int32))


def plus_plus(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Rows drawn far from each other (greedy k-means++).

  Each further row is the best of T = 2 + log K trials, drawn in proportion to
  the weighted squared distance to the nearest of the rows chosen so far.

  Args:
    seeds: `[R]` uint32, one for each run.
    rows: N rows.
    num_clusters: how many centers to draw, at most `size`.
    size: K of the result.

  Returns:
    Centers `[R, K, D]` in the frame of the rows.
  """
  num_runs, num_features = len(seeds), rows.shape[1]
  num_trials = 2 + int(math.log(bucket(size, 4)))
  numbers = number_rows(rows)

  def choose(k, state):
    centers, least = state
    draws = (k * num_trials + jnp.arange(num_trials)).astype(jnp.uint32)
    noise = mix(seeds[:, None] ^ mix(draws)[None])
    trials = _draw(noise, rows, numbers, least)
    potential = reduce_rows(
      _potentials, trials, rows, least, width=num_runs * num_trials
    )
    best = jnp.argmin(potential, axis=1)[:, None, None]
    center = jnp.take_along_axis(trials, best, axis=1)
    centers = lax.dynamic_update_slice_in_dim(centers, center, k, 1)
    least = map_rows(_nearer, center, rows, least, width=num_runs)
    return centers, least

  shape = rows.shape[0], num_runs
  everywhere = jnp.full(shape, jnp.inf, rows.dtype)
  same = jnp.ones(shape, rows.dtype)
  first = _draw(mix(seeds[:, None]), rows, numbers, same)
  centers = jnp.broadcast_to(first, (num_runs, size, num_features))
  least = map_rows(_nearer, first, rows, everywhere, width=num_runs)
  return lax.fori_loop(1, num_clusters, choose, (centers, least))[0]


def parallel(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Rows drawn many at a time, then thinned by k-means++ (k-means||).

  Each of two rounds draws 2 K rows in proportion to the weighted squared
  distance to the rows drawn before. Greedy k-means++ chooses K of these
  candidates, which weigh what the rows nearest to them weigh. The passes over x
  are 4 in place of 2 K. Arguments as for `plus_plus`.
  """
  many = min(_OVERSAMPLING * size, rows.shape[0])
  numbers = number_rows(rows)

  def seed_one(seed):
    column = jnp.ones((rows.shape[0], 1), rows.dtype)
    drawn = _draw(mix(seed)[None, None], rows, numbers, column)[0]
    least = map_rows(_nearer, drawn[None], rows, column * jnp.inf, width=1)
    candidates = [drawn]
    for number in range(_ROUNDS):
      noise = mix(seed ^ mix(jnp.uint32(number + 1)))[None, None]
      drawn = _draw(noise, rows, numbers, least, count=many)[0]
      least = map_rows(_nearer, drawn[None], rows, least, width=many)
      candidates.append(drawn)
    x = jnp.concatenate(candidates)
    masses = reduce_rows(_masses, x, rows, width=2 * len(x))
    found = plus_plus(mix(seed)[None], Rows(x, masses), num_clusters, size)
    return found[0]

  return lax.map(seed_one, seeds)


def random_rows(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Different rows drawn in proportion to their weights.

  The first is repeated where there are too few rows of positive weight.
  Arguments as for `plus_plus`.
  """
  del num_clusters
  column = jnp.ones((rows.shape[0], 1), rows.dtype)
  numbers = number_rows(rows)
  return lax.map(
    lambda seed: _draw(mix(seed)[None, None], rows, numbers, column, size)[0],
    seeds,
  )


@functools.partial(compiled, static=(2,))
def sample_rows(seed: jax.Array, rows: Rows, count: int) -> Rows:
  """Up to `count` different rows drawn in proportion to their weights, in the
  frame; each then weighs the same."""
  numbers = number_rows(rows)
  lib = np if rows.is_streamed else jnp
  column = lib.ones((rows.shape[0], 1), rows.dtype)
  count = min(count, rows.shape[0])
  times, x = top_rows(
    _race, mix(seed)[None, None], rows, numbers, column, count=count
  )
  return Rows(x[0], jnp.isfinite(times[0]).astype(rows.dtype))


def _draw(seeds, rows, numbers, least, count=1):
  """Draws by weight times `least` `[N, R]`.

  Args:
    seeds: `[R, T]` of the draws.
    count: C rows of each draw.

  Returns:
    Rows `[R, T C, D]` in the frame.
  """
  times, x = top_rows(_race, seeds, rows, numbers, least, count=count)
  x = jnp.where(jnp.isfinite(times)[..., None], x, x[:, :1])
  return x.reshape(len(seeds), -1, x.shape[-1])


def _race(seeds, weight, numbers, least):
  """Negative times `[R T, B]` of arrival; rows of weight zero never arrive."""
  mass = jnp.where(weight[None] > 0, weight[None] * least.T, -1)
  each_draw = jax.vmap(arrivals, (0, None, None))
  times = jax.vmap(each_draw, (0, None, 0))(seeds, numbers, mass)
  return -times.reshape(-1, len(weight))


def arrivals(seed: jax.Array, numbers: jax.Array, mass: jax.Array) -> jax.Array:
  """Times `[N]` of an exponential race; the first row is a draw by mass.

  The k first rows are k draws without replacement. Rows of mass 0 come after
  all others, rows of negative mass never.

  Args:
    seed: uint32.
    numbers: `[N]` int32, distinct where the mass is positive.
    mass: `[N]`.
  """
  noise = mix(numbers.astype(jnp.uint32) ^ jnp.broadcast_to(seed, mass.shape))
  uniform = (noise.astype(mass.dtype) + 0.5) * 2.0**-32
  exponential = -jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24))
  tiny = jnp.finfo(mass.dtype).tiny * 2.0**10
  return jnp.where(mass < 0, jnp.inf, exponential / jnp.maximum(mass, tiny))


def mix(bits: jax.Array) -> jax.Array:
  """A bijection of uint32 that spreads every bit (Wellons, lowbias32)."""
  bits = bits ^ jnp.uint32(0x9E3779B9)
  bits = (bits ^ (bits >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> jnp.uint32(16))


def _potentials(trials, x, weight, least):
  """Inertias `[R, T]`, were each of the trials `[R, T, D]` chosen."""
  flat = trials.reshape(-1, trials.shape[-1])
  squared = squared_distances(x, flat).reshape(*trials.shape[:2], -1)
  return dot(jnp.minimum(squared, least.T[:, None]), weight)


def _nearer(centers, x, least):
  """Squared distances `[B, R]` to the nearest, with centers `[R, M, D]` too."""
  flat = centers.reshape(-1, centers.shape[-1])
  squared = squared_distances(x, flat).reshape(*centers.shape[:2], -1)
  return jnp.minimum(least, squared.min(axis=1).T)


def _masses(candidates, x, weight):
  """The weight `[M]` of the rows nearest to each candidate."""
  _, labels = nearest(squared_distances(x, candidates)[None])
  return dot(one_hot(labels, len(candidates), weight.dtype), weight)


SEEDINGS = {
  'k-means++': plus_plus,
  'k-means||': parallel,
  'random': random_rows,
}


def seed_centers(
  name: str,
  key: jax.Array,
  rows: Rows,
  num_clusters: int,
  num_runs: int,
  size: int,
) -> jax.Array:
  """Draws centers `[R, K, D]` in the frame of the rows.

  Run r draws from `fold_in(key, r)`. The seeds of a stream are drawn from a
  sample of its rows.

  Args:
    name: of `SEEDINGS`.
    key: a JAX random key.
    rows: N rows.
    num_clusters: how many centers to draw.
    num_runs: R.
    size: K of the result.
  """
  if rows.is_streamed:
    count = max(_SAMPLE, 10 * num_clusters)
    rows = sample_rows(jax.random.bits(key, dtype=jnp.uint32), rows, count)
  traced = checks.is_traced(key, rows)
  runs = np.arange(num_runs, dtype=np.int32)
  seed = functools.partial(_seed, name, size)
  if traced or not rows.is_small:
    return seed(key, runs, rows, num_clusters)
  return each_run(lambda r: seed(key, r, rows, num_clusters), runs, traced)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _seed(name, size, key, runs, rows, num_clusters):
  def bits(run):
    return jax.random.bits(jax.random.fold_in(key, run), dtype=jnp.uint32)

  seeds = jax.vmap(bits)(runs)
  return SEEDINGS[name](seeds, rows.enter_frame(), num_clusters, size)

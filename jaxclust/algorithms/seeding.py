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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms.distances import (
  nearest,
  squared_distances,
  sums_by_label,
)
from jaxclust.algorithms.lloyd import Clusters, pad
from jaxclust.algorithms.solver import each_run
from jaxclust.frames import dot
from jaxclust.inputs import LEAST_GROUPS, bucket, padded_groups
from jaxclust.programs import compiled
from jaxclust.rows import (
  Rows,
  cumulate,
  map_rows,
  reduce_rows,
  scan_rows,
  top_rows,
)

# Rounds of k-means||, and rows drawn in each for a cluster.
_ROUNDS, _OVERSAMPLING = 2, 2

# Maximum distances to trials that are kept, as a share of the numbers of x.
_KEPT_SHARE = 1 / 8

# Rows that stand for a stream when its seeds are drawn.
_SAMPLE = 2**17


def number_rows(rows: Rows) -> jax.Array:
  """The number `[N]` int32 of each row among those of positive weight."""
  return cumulate(rows, (rows.weight > 0).astype(np.int32))


def _plus_plus(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Rows drawn far from each other (greedy k-means++).

  Each further row is the best of T = 2 + log K trials, drawn in proportion to
  the weighted squared distance to the nearest of the rows chosen so far.

  Args:
    seeds: `[R]` uint32, one for each run.
    rows: N rows.
    num_clusters: how many centers to draw.
    size: K of the result `[R, K, D]` in the frame.
  """
  num_runs, num_features = len(seeds), rows.shape[1]
  num_trials = 2 + int(math.log(bucket(size, LEAST_GROUPS)))
  numbers = number_rows(rows)
  width = num_runs * num_trials
  keeps_all = width <= _KEPT_SHARE * num_features

  def choose(k, state):
    centers, least = state
    draws = (k * num_trials + jnp.arange(num_trials)).astype(jnp.uint32)
    noise = mix(seeds[:, None] ^ mix(draws)[None])
    trials = _draw(noise, rows, numbers, least)
    try_all = functools.partial(_try, keeps_all)
    potential, found = scan_rows(try_all, trials, rows, least, width=width)
    best = jnp.argmin(potential, axis=1)[:, None, None]
    center = jnp.take_along_axis(trials, best, axis=1)
    centers = lax.dynamic_update_slice_in_dim(centers, center, k, 1)
    if keeps_all:
      least = jnp.take_along_axis(found, jnp.swapaxes(best, 0, 1), 2)[..., 0]
    else:
      least = map_rows(_nearer, center, rows, least, width=num_runs)
    return centers, least

  first = _draw(mix(seeds[:, None]), rows, numbers)
  centers = jnp.broadcast_to(first, (num_runs, size, num_features))
  least = map_rows(_nearer, first, rows, width=num_runs)
  return lax.fori_loop(1, num_clusters, choose, (centers, least))[0]


def _parallel(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Rows drawn many at a time, then thinned by k-means++ (k-means||).

  Each of two rounds draws 2 K rows in proportion to the weighted squared
  distance to the rows drawn before. Greedy k-means++ chooses K of these
  candidates, which weigh what the rows nearest to them weigh. The passes over x
  are 4 in place of 2 K. Arguments as for `_plus_plus`.
  """
  many = min(_OVERSAMPLING * size, rows.shape[0])
  numbers = number_rows(rows)

  def seed_one(seed):
    drawn = _draw(mix(seed)[None, None], rows, numbers)[0]
    least = map_rows(_nearer, drawn[None], rows, width=1)
    candidates = [drawn]
    for number in range(_ROUNDS):
      noise = mix(seed ^ mix(jnp.uint32(number + 1)))[None, None]
      drawn = _draw(noise, rows, numbers, least, count=many)[0]
      least = map_rows(_nearer, drawn[None], rows, least, width=many)
      candidates.append(drawn)
    x = jnp.concatenate(candidates)
    masses = reduce_rows(_masses, x, rows, width=2 * len(x))
    found = _plus_plus(mix(seed)[None], Rows(x, masses), num_clusters, size)
    return found[0]

  return lax.map(seed_one, seeds)


def _random_rows(
  seeds: jax.Array, rows: Rows, num_clusters: jax.Array, size: int
) -> jax.Array:
  """Different rows drawn in proportion to their weights.

  The first is repeated where there are too few rows of positive weight.
  Arguments as for `_plus_plus`.
  """
  del num_clusters
  numbers = number_rows(rows)
  return lax.map(
    lambda seed: _draw(mix(seed)[None, None], rows, numbers, count=size)[0],
    seeds,
  )


def sample(key: jax.Array, rows: Rows, size: int) -> Rows:
  """Up to so many rows that stand for all, drawn in proportion to weights."""
  traced = checks.is_traced(rows.weight)  # else padding is known
  num_points = rows.shape[0] if traced else int((rows.weight > 0).sum())
  if size >= num_points and not rows.is_streamed:
    return rows
  seed = jax.random.bits(key, dtype=jnp.uint32)
  return sample_rows(seed, rows, min(size, num_points))


@functools.partial(compiled, static=(2,))
def sample_rows(seed: jax.Array, rows: Rows, count: int) -> Rows:
  """Different rows of weight 1; it is 0 beyond those of positive weight."""
  times, x = top_rows(
    _race, mix(seed)[None, None], rows, number_rows(rows), count=count
  )
  weight = jnp.isfinite(times[0]).astype(rows.dtype)
  return Rows(rows.frame.invert(x[0]), weight, rows.frame)


def _draw(seeds, rows, numbers, *least, count=1):
  """Draws by weight, times `least` `[N, R]` if it is given.

  Seeds `[R, T]` give rows `[R, T C, D]` in the frame, with C the count.
  """
  times, x = top_rows(_race, seeds, rows, numbers, *least, count=count)
  x = jnp.where(jnp.isfinite(times)[..., None], x, x[:, :1])
  return x.reshape(len(seeds), -1, x.shape[-1])


def _race(seeds, weight, numbers, least=None):
  """Negative times `[R T, B]` of arrival; rows of weight zero never arrive."""
  if least is None:
    least = jnp.ones((1, len(seeds)), weight.dtype)
  mass = jnp.where(weight[None] > 0, weight[None] * least.T, -1)
  each_draw = jax.vmap(arrivals, (0, None, None))
  times = jax.vmap(each_draw, (0, None, 0))(seeds, numbers, mass)
  return -times.reshape(-1, len(weight))


def arrivals(seed: jax.Array, numbers: jax.Array, mass: jax.Array) -> jax.Array:
  """Times `[N]` of an exponential race; the first row is a draw by mass.

  The k first rows are k draws without replacement. Rows of mass 0 come after
  all others, rows of negative mass never.

  Numbers `[N]` int32 are distinct where the mass `[N]` is positive.
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


def _try(keeps_all, trials, x, weight, least):
  """Inertias `[R, T]`, were each of the trials `[R, T, D]` chosen, and squared
  distances `[B, R, T]` to the nearest then, unless they are dropped."""
  flat = trials.reshape(-1, trials.shape[-1])
  squared = squared_distances(x, flat).reshape(*trials.shape[:2], -1)
  found = jnp.minimum(squared, least.T[:, None])
  return dot(found, weight), jnp.moveaxis(found, 2, 0) if keeps_all else ()


def _nearer(centers, x, least=jnp.inf):
  """Squared distances `[B, R]` to the nearest, with centers `[R, M, D]` too."""
  shape = centers.shape

  def least_of_each_run(part, rest):
    part = part.reshape(*shape[:2], -1).min(axis=1)
    return jnp.maximum(part + rest[None], 0)

  flat = centers.reshape(-1, shape[-1])
  squared = squared_distances(x, flat, reduce=least_of_each_run)
  return jnp.minimum(least, squared.T)


def _masses(candidates, x, weight):
  """The weight `[M]` of the rows nearest to each candidate."""
  _, labels = squared_distances(
    x, candidates, reduce=lambda part, rest: nearest(part[None], rest)
  )
  return sums_by_label(labels, len(candidates), weight)[0]


SEEDINGS = {
  'k-means++': _plus_plus,
  'k-means||': _parallel,
  'random': _random_rows,
}


def seed(
  key: jax.Array, rows: Rows, num_clusters: int, num_restarts: int, init: Any
) -> Clusters:
  """The centers that R runs start from, in the frame of the rows.

  Options are those of `kmeans.fit`. Run r draws from `fold_in(key, r)`. The
  seeds of a stream are drawn from a sample of its rows.
  """
  size = padded_groups(num_clusters, rows)
  if not isinstance(init, str):
    lib = jnp if checks.is_traced(init) else np
    centers = lib.asarray(init).astype(rows.dtype)
    centers = rows.frame.apply(centers.reshape(-1, *centers.shape[-2:]))
    return pad(centers, num_clusters, size)
  if rows.is_streamed:
    rows = sample(key, rows, max(_SAMPLE, 10 * num_clusters))
  traced = checks.is_traced(key, rows)
  runs = np.arange(num_restarts, dtype=np.int32)
  draw = functools.partial(_seed, init, size, key, rows, num_clusters)
  in_turn = rows.is_small and not traced
  centers = each_run(draw, runs, traced) if in_turn else draw(runs)
  return pad(centers, num_clusters, size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _seed(name, size, key, rows, num_clusters, runs):
  def bits(run):
    return jax.random.bits(jax.random.fold_in(key, run), dtype=jnp.uint32)

  seeds = jax.vmap(bits)(runs)
  return SEEDINGS[name](seeds, rows.enter_frame(), num_clusters, size)

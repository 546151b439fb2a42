"""k-means: greedy k-means++ seeding and Lloyd's algorithm, restarts together.

Minimises the inertia `sum_n w_n min_k |x_n - c_k|^2`. A step moves each center
to the weighted mean of its points and assigns all points anew; the restarts of
a fit share every pass over x as columns of one matrix product. Those that have
stopped are dropped from it, half of the rest at a time.

Axes: N points, D features, K clusters, R restarts, B rows of a block, T trials.

References:
  Lloyd (1982), Least squares quantization in PCM,
    https://doi.org/10.1109/TIT.1982.1056489
  Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding,
    https://dl.acm.org/doi/10.5555/1283383.1283494
"""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import numerics
from jaxclust.numerics import Frame, InputError, StopReason


class KMeansState(NamedTuple):
  """R runs of Lloyd's algorithm, in the coordinates of a frame.

  Sums, counts and inertia are those of the centers beside them.
  """

  frame: Frame
  centers: jax.Array  # [R, K, D]
  sums: jax.Array  # [R, K, D] weighted sums of each cluster's points
  counts: jax.Array  # [R, K] weights of each cluster's points
  inertia: jax.Array  # [R]
  num_steps: jax.Array  # [R] int32
  stop_reason: jax.Array  # [R] int32, a StopReason


class KMeansResult(NamedTuple):
  """The best of the runs, in the data's units, clusters by falling size."""

  centers: jax.Array  # [K, D]
  counts: jax.Array  # [K] weights of each cluster's points
  inertia: jax.Array  # []
  num_steps: jax.Array  # [] int32
  stop_reason: jax.Array  # [] int32, a StopReason
  inertias: jax.Array  # [R] of all runs

  @property
  def converged(self) -> jax.Array:
    return self.stop_reason == StopReason.CONVERGED


def fit(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  max_steps: int = 300,
  tol: float = 1e-4,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> KMeansResult:
  """Clusters points by k-means, from several starts, and keeps the best.

  Args:
    key: a JAX random key; each restart draws from `fold_in(key, restart)`.
    x: `[N, D]` points.
    num_clusters: K, at most N.
    num_restarts: R.
    init: 'k-means++', 'random' (distinct rows), or centers `[K, D]` or
      `[R, K, D]`, which then set the number of restarts.
    max_steps: most steps of a restart.
    tol: a restart has converged when the squared shift of all its centers is at
      most tol times the mean variance of the features.
    sample_weight: `[N]` weights; a row of weight 0 changes nothing.
    block_size: rows in a block of a pass, chosen by size if None.

  Returns:
    The run of least finite inertia.

  Raises:
    InputError: for input that cannot be clustered.
  """
  check_steps(max_steps, tol)
  x, sample_weight = numerics.check_points(x, sample_weight)
  state = start(
    key,
    x,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    sample_weight=sample_weight,
    block_size=block_size,
  )
  state, _ = run(
    state,
    x,
    max_steps=max_steps,
    tol=tol,
    sample_weight=sample_weight,
    block_size=block_size,
  )
  result = best(state)
  warn(result)
  return result


def start(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> KMeansState:
  """Seeds R runs and assigns the points once; arguments as for `fit`."""
  x, sample_weight = numerics.check_points(x, sample_weight)
  check_start(
    *x.shape, num_clusters=num_clusters, num_restarts=num_restarts, init=init
  )
  numerics.check_rows('num_clusters', num_clusters, sample_weight)
  centers = None
  if not isinstance(init, str):
    centers = jnp.asarray(init).astype(numerics.float_dtype(x))
    init = 'given'
  return _start(
    key,
    x,
    sample_weight,
    centers,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    block_size=block_size,
  )


def check_start(
  num_points: int,
  num_features: int,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
) -> None:
  """Checks the options of `start` against the shape of x.

  Raises:
    InputError: if they do not fit.
  """
  numerics.check_count('num_clusters', num_clusters)
  numerics.check_count('num_restarts', num_restarts)
  if num_clusters > num_points:
    raise InputError(
      f'num_clusters is {num_clusters}, but x has only {num_points} rows: '
      'ask for at most as many clusters as rows'
    )
  if not isinstance(init, str):
    check_centers('init', init, num_clusters, num_features)
  elif init not in SEEDINGS:
    raise InputError(
      f'init is {init!r}: it must be one of {", ".join(SEEDINGS)}, or centers'
    )


def check_steps(max_steps: int, tol: float) -> None:
  """Checks the options that end a run.

  Raises:
    InputError: if they are out of range.
  """
  numerics.check_count('max_steps', max_steps)
  numerics.check_number('tol', tol)


@functools.partial(jax.jit, static_argnames=('num_steps', 'block_size'))
def run(
  state: KMeansState,
  x: jax.Array,
  num_steps: int | None = None,
  *,
  max_steps: int = 300,
  tol: float = 1e-4,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> tuple[KMeansState, jax.Array]:
  """Makes further steps of every run that has not stopped.

  Args:
    state: R runs, from `start` or `run`.
    x: `[N, D]` the same points.
    num_steps: most steps of this call; None to go on until all have stopped.
    max_steps: most steps of a run over all calls.
    tol: as for `fit`.
    sample_weight: `[N]` or None.
    block_size: as for `fit`.

  Returns:
    The new state, and the inertia after each step `[num_steps, R]` (of no steps
    if num_steps is None); a run that has stopped repeats its last one.
  """
  advance = functools.partial(
    step, x=x, sample_weight=sample_weight, tol=tol, block_size=block_size
  )
  num_rows, limit = 0, jnp.broadcast_to(max_steps, state.num_steps.shape)
  if num_steps is not None:
    num_rows, limit = num_steps, jnp.minimum(limit, state.num_steps + num_steps)
  history = jnp.broadcast_to(
    state.inertia[None], (num_rows, *state.inertia.shape)
  )
  state, history = _iterate(advance, state, limit, history)
  return numerics.mark_out_of_steps(state, max_steps), history


def step(
  state: KMeansState,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  tol: float = 1e-4,
  block_size: int | None = None,
) -> KMeansState:
  """Moves every center to the mean of its points and assigns the points anew.

  A cluster without points takes the point that is farthest from all centers.
  A run whose score is not finite keeps its centers and stops.
  """
  x, sample_weight = numerics.as_arrays(x, sample_weight)
  frame = state.frame
  occupied = state.counts > 0
  weight = jnp.where(occupied, state.counts, 1)[..., None]
  centers = jnp.where(occupied[..., None], state.sums / weight, state.centers)
  centers, moves = lax.cond(
    jnp.all(occupied),
    lambda: (centers, jnp.zeros_like(occupied)),
    lambda: _relocate(centers, occupied, x, sample_weight, frame, block_size),
  )
  shift = jnp.square(centers - state.centers).sum(axis=(1, 2))
  sums, counts, inertia = _assign(centers, x, sample_weight, frame, block_size)
  finite = jnp.isfinite(inertia) & jnp.isfinite(shift)
  # An empty cluster is final only where no point is left for it.
  settled = jnp.all((counts > 0) | (~occupied & ~moves), axis=1)
  reason = jnp.where(
    (shift <= tol) & settled, StopReason.CONVERGED, StopReason.RUNNING
  )
  moved = KMeansState(
    frame=frame,
    centers=centers,
    sums=sums,
    counts=counts,
    inertia=inertia,
    num_steps=state.num_steps + 1,
    stop_reason=reason.astype(jnp.int32),
  )
  stuck = state._replace(
    stop_reason=jnp.full_like(state.stop_reason, StopReason.NONFINITE)
  )
  return _choose(finite, moved, stuck)


@jax.jit
def best(state: KMeansState) -> KMeansResult:
  """Returns the run of least finite inertia, in the data's units."""
  index = numerics.best_finite(state.inertia)
  order = jnp.argsort(-state.counts[index], stable=True)
  square = jnp.square(state.frame.scale)
  return KMeansResult(
    centers=state.frame.leave(state.centers[index][order]),
    counts=state.counts[index][order],
    inertia=state.inertia[index] * square,
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    inertias=state.inertia * square,
  )


def predict(
  centers: jax.Array, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Labels `[N]` int32 of the nearest of the centers `[K, D]`; ties: the first.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  x, _ = numerics.check_points(x)
  check_centers('centers', centers, None, x.shape[1])
  centers = jnp.asarray(centers).astype(numerics.float_dtype(x))
  if centers.ndim != 2:
    raise InputError(f'centers have shape {centers.shape}: it must be [K, D]')
  return _predict(centers, x, block_size=block_size)


def check_centers(
  name: str, centers: Any, num_clusters: int | None, num_features: int
) -> None:
  """Checks centers `[K, D]` or `[R, K, D]`; K is free if None.

  Raises:
    InputError: for another shape, or for concrete values that are not finite.
  """
  shape = tuple(np.shape(centers))
  rows = shape[-2] if len(shape) > 1 else 0
  if num_clusters is not None and rows != num_clusters:
    rows = 0
  if (
    len(shape) not in (2, 3)
    or shape[-1] != num_features
    or 0 in shape[:-2]
    or not rows
  ):
    raise InputError(
      f'{name} has shape {shape}: it must end in '
      f'[{num_clusters or "K"}, {num_features}], as x has {num_features} '
      'features'
    )
  concrete = not isinstance(centers, jax.core.Tracer)
  if concrete and not np.isfinite(np.asarray(centers)).all():
    raise InputError(f'{name} has values that are NaN or infinite: give others')


def warn(result: KMeansResult) -> None:
  """Warns of what a concrete result falls short of."""
  if isinstance(result.inertia, jax.core.Tracer):
    return
  num_clusters = result.counts.shape[0]
  occupied = int((result.counts > 0).sum())
  reason = int(result.stop_reason)
  if reason == StopReason.CONVERGED and occupied < num_clusters:
    warnings.warn(
      f'k-means found {occupied} distinct of {num_clusters} clusters: '
      'x has too few distinct rows',
      stacklevel=3,
    )
  if reason == StopReason.MAX_STEPS:
    warnings.warn(
      f'k-means did not converge in {int(result.num_steps)} steps: '
      'raise max_steps or tol',
      stacklevel=3,
    )
  if reason == StopReason.NONFINITE:
    warnings.warn(
      'k-means stopped: the inertia is not finite; look for NaN or very large '
      'values in x',
      stacklevel=3,
    )


@functools.partial(
  jax.jit,
  static_argnames=('num_clusters', 'num_restarts', 'init', 'block_size'),
)
def _start(
  key,
  x,
  sample_weight,
  centers,
  *,
  num_clusters,
  num_restarts,
  init,
  block_size,
):
  narrow = _block_rows(x, 1, 1, block_size)
  frame = numerics.find_frame(x, sample_weight, narrow)
  if init == 'given':
    centers = frame.enter(centers.reshape(-1, num_clusters, x.shape[1]))
  else:
    ids = numerics.content_ids(x, sample_weight, narrow)
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(
      jnp.arange(num_restarts)
    )
    rows = SEEDINGS[init](
      keys,
      x=x,
      sample_weight=sample_weight,
      ids=ids,
      frame=frame,
      num_clusters=num_clusters,
      block_size=_block_rows(x, num_restarts, 8, block_size),
    )
    centers = frame.enter(x[rows])
  return first_state(centers, x, sample_weight, frame, block_size)


def first_state(
  centers: jax.Array,
  x: jax.Array,
  sample_weight: jax.Array,
  frame: Frame,
  block_size: int | None = None,
) -> KMeansState:
  """The state of runs that stand at centers `[R, K, D]` in the frame."""
  sums, counts, inertia = _assign(centers, x, sample_weight, frame, block_size)
  num_restarts = centers.shape[0]
  running = jnp.full(num_restarts, StopReason.RUNNING, jnp.int32)
  return KMeansState(
    frame=frame,
    centers=centers,
    sums=sums,
    counts=counts,
    inertia=inertia,
    num_steps=jnp.zeros(num_restarts, jnp.int32),
    stop_reason=jnp.where(
      jnp.isfinite(inertia), running, StopReason.NONFINITE
    ).astype(jnp.int32),
  )


def _plus_plus(
  keys, *, x, sample_weight, ids, frame, num_clusters, block_size
) -> jax.Array:
  """Indices `[R, K]` of rows drawn far from each other (greedy k-means++).

  Each further row is the best of T = 2 + log K trials, drawn in proportion to
  the weighted squared distance to the nearest of the rows chosen so far.
  """
  num_restarts = keys.shape[0]
  num_trials = 2 + int(math.log(num_clusters))
  seeds = jax.vmap(
    lambda key: jax.random.bits(key, (num_clusters, num_trials), jnp.uint32)
  )(keys)
  in_play = sample_weight > 0

  def draw(seed, nearest):
    mass = jnp.where(in_play, sample_weight * nearest, -1)
    return jnp.argmin(numerics.arrivals(seed, ids, mass)).astype(jnp.int32)

  draw_trials = jax.vmap(jax.vmap(draw, (0, None)), (0, 1))

  def potentials(trials, nearest):
    """Inertias `[R, T]`, were each of the trials `[R, T]` chosen."""
    centers = frame.enter(x[trials.reshape(-1)])

    def part(total, block, fresh):
      x, weight, nearest = block
      squared = numerics.squared_distances(frame.enter(x), centers)
      squared = squared.reshape(-1, num_restarts, num_trials)
      squared = jnp.minimum(squared, nearest[:, :, None])
      weight = jnp.where(fresh, weight, 0)
      flat = squared.reshape(x.shape[0], -1)
      return total + numerics.dot(weight, flat), ()

    zeros = jnp.zeros(num_restarts * num_trials, nearest.dtype)
    rows = (x, sample_weight, nearest)
    total, _ = numerics.scan_blocks(part, zeros, rows, block_size)
    return total.reshape(num_restarts, num_trials)

  def distances_to(indices):
    """Squared distances `[N, R]` to the rows at indices `[R]`."""
    centers = frame.enter(x[indices])
    return numerics.map_blocks(
      lambda x: numerics.squared_distances(frame.enter(x), centers),
      x,
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


def _random_rows(
  keys, *, x, sample_weight, ids, frame, num_clusters, block_size
) -> jax.Array:
  """Indices `[R, K]` of different rows drawn in proportion to their weights.

  The first is repeated where there are too few rows of positive weight.
  """
  del x, frame, block_size
  mass = jnp.where(sample_weight > 0, sample_weight, -1)

  def draw(key):
    times = numerics.arrivals(jax.random.bits(key, dtype=jnp.uint32), ids, mass)
    early, rows = lax.top_k(-times, num_clusters)
    return jnp.where(jnp.isfinite(early), rows, rows[0])

  return jax.vmap(draw)(keys)


SEEDINGS = {'k-means++': _plus_plus, 'random': _random_rows}


def _iterate(advance, state, limit, history):
  """Steps every run up to its limit `[R]`, in ever narrower batches.

  Args:
    advance: state -> state, one step of all its runs.
    state: R runs.
    limit: `[R]` steps.
    history: `[S, R]` inertias, rewritten from the first step of this call on.
  """
  begun = state.num_steps
  width = begun.shape[0]
  while width:
    lanes = jnp.argsort(~_active(state, limit), stable=True)[:width]
    part, scores = _iterate_lanes(
      advance,
      _take(state, lanes),
      limit[lanes],
      begun[lanes],
      history[:, lanes],
    )
    state = jax.tree.map(
      lambda a, b, lanes=lanes: a.at[lanes].set(b),
      state._replace(frame=None),
      part._replace(frame=None),
    )._replace(frame=state.frame)
    history = history.at[:, lanes].set(scores)
    width //= 2
  return state, history


def _iterate_lanes(advance, state, limit, begun, history):
  """Steps runs together until at most half of them are active."""
  rows = lax.iota(jnp.int32, history.shape[0])[:, None]

  def keep_going(carry):
    return _active(carry[0], limit).sum() > limit.shape[0] // 2

  def body(carry):
    old, history = carry
    active = _active(old, limit)
    new = _choose(active, advance(old), old)
    since = (rows >= (old.num_steps - begun)[None]) & active[None]
    return new, jnp.where(since, new.inertia[None], history)

  return lax.while_loop(keep_going, body, (state, history))


def _active(state, limit):
  running = state.stop_reason == StopReason.RUNNING
  return running & (state.num_steps < limit)


def _take(state, lanes):
  """The runs at lanes `[L]` of a state."""
  runs = jax.tree.map(lambda a: a[lanes], state._replace(frame=None))
  return runs._replace(frame=state.frame)


def _assign(centers, x, sample_weight, frame, block_size):
  """Sums `[R, K, D]`, counts `[R, K]`, inertia `[R]` of the points' labels."""
  num_restarts, num_clusters, num_features = centers.shape
  flat = centers.reshape(-1, num_features)

  def part(x, weight):
    x = frame.enter(x)
    squared = numerics.squared_distances(x, flat)
    squared = squared.reshape(-1, num_restarts, num_clusters)
    members = jax.nn.one_hot(
      jnp.argmin(squared, axis=-1), num_clusters, dtype=x.dtype
    )
    members = (members * weight[:, None, None]).reshape(x.shape[0], -1)
    sums = numerics.dot(members.T, x)
    inertia = numerics.dot(weight, squared.min(axis=-1))
    return sums, members.sum(axis=0), inertia

  sums, counts, inertia = numerics.sum_blocks(
    part,
    x,
    sample_weight,
    _block_rows(x, num_restarts, num_clusters, block_size),
  )
  counts = counts.reshape(num_restarts, num_clusters)
  return sums.reshape(centers.shape), counts, inertia


def _relocate(centers, occupied, x, sample_weight, frame, block_size):
  """Moves centers without points to the points farthest from all centers.

  Returns:
    The centers `[R, K, D]`, and which of them have moved `[R, K]`.
  """
  num_restarts, num_clusters, num_features = centers.shape
  flat = centers.reshape(-1, num_features)

  def nearest(x):
    squared = numerics.squared_distances(frame.enter(x), flat)
    return squared.reshape(-1, num_restarts, num_clusters).min(axis=-1)

  squared = numerics.map_blocks(
    nearest, x, _block_rows(x, num_restarts, num_clusters, block_size)
  )
  squared = jnp.where(sample_weight[:, None] > 0, squared, 0)
  farthest, rows = lax.top_k(squared.T, num_clusters)
  rank = jnp.maximum(jnp.cumsum(~occupied, axis=1) - 1, 0)
  farthest = jnp.take_along_axis(farthest, rank, axis=1)
  points = frame.enter(x[jnp.take_along_axis(rows, rank, axis=1)])
  # A mean of equal rows is as far from them as its rounding.
  rounding = 64 * jnp.finfo(points.dtype).eps
  apart = farthest > rounding**2 * jnp.square(points).sum(axis=-1)
  moves = ~occupied & apart
  return jnp.where(moves[..., None], points, centers), moves


@functools.partial(jax.jit, static_argnames='block_size')
def _predict(centers, x, *, block_size):
  frame = Frame(centers.mean(axis=0), _spread(centers))
  centers = frame.enter(centers)
  return numerics.map_blocks(
    lambda x: jnp.argmin(
      numerics.squared_distances(frame.enter(x), centers), axis=1
    ).astype(jnp.int32),
    x,
    _block_rows(x, 1, centers.shape[0], block_size),
  )


def _spread(centers):
  spread = jnp.abs(centers - centers.mean(axis=0)[None]).max()
  return jnp.where(spread > 0, spread, 1)


def _block_rows(x, num_restarts, num_clusters, block_size):
  """Rows of a block of a pass with R K columns, unless the caller says."""
  width = x.shape[1] + num_restarts * num_clusters
  return min(block_size or numerics.block_rows(x.shape[0], width), x.shape[0])


def _choose(mask, new, old):
  """Takes each run from new where mask `[R]` says so, else from old."""
  chosen = jax.tree.map(
    lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b),
    new._replace(frame=None),
    old._replace(frame=None),
  )
  return chosen._replace(frame=new.frame)

"""k-means: Lloyd's algorithm on all points or on batches, restarts together.

Minimises the inertia `sum_n w_n min_k |x_n - c_k|^2`. A step moves each center
to the weighted mean of its points and assigns all points anew; the restarts of
a fit are seeded together, as columns of one matrix product. The sums of a step
are those of the step before, corrected by the rows that changed cluster.

The cosine metric is the same on rows of length one, with centers moved back to
length one after each step (spherical k-means): the inertia is then twice the
sum of `1 - cos`.

A point keeps its label without being looked at while an upper bound of the
distance to its center is below a lower bound of that to any other; bounds move
with the centers, by the triangle inequality. After a few steps most points do.

Axes: N points, D features, K clusters, R restarts, B rows of a block.

References:
  Lloyd (1982), Least squares quantization in PCM,
    https://doi.org/10.1109/TIT.1982.1056489
  Dhillon and Modha (2001), Concept decompositions for large sparse text data
    using clustering, https://doi.org/10.1023/A:1007612920971
  Hamerly (2010), Making k-means even faster,
    https://doi.org/10.1137/1.9781611972801.12
  Sculley (2010), Web-scale k-means clustering,
    https://doi.org/10.1145/1772690.1772862
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import numerics, seeding
from jaxclust.numerics import Frame, InputError, Points, Sphere, StopReason

# How far sums may drift by rounding, in the points' distance to their centers,
# and the share of all squares below which an inertia is no difference of sums.
_DRIFT = 1e-5
_CANCELS = 1e-2


class KMeansState(NamedTuple):
  """R runs of Lloyd's algorithm, in the coordinates of a frame.

  Sums, counts and inertia are those of the centers beside them.
  """

  frame: Frame | Sphere
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
  metric: str = 'euclidean',
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
    init: 'k-means++', 'k-means||' (faster for K of 100 and up), 'random'
      (distinct rows), or centers `[K, D]` or `[R, K, D]`, which then set the
      number of restarts.
    metric: 'euclidean' or 'cosine', which sees only the directions of rows.
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
  state, bounds = _begin(
    key,
    x,
    sample_weight,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    metric=metric,
    block_size=block_size,
  )
  state, _ = _run(
    state,
    x,
    bounds,
    max_steps=max_steps,
    tol=tol,
    sample_weight=sample_weight,
    block_size=block_size,
  )
  result = best(state)
  warn(result)
  return result


def fit_minibatch(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: int,
  batch_size: int = 1024,
  num_restarts: int = 3,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  num_batches: int = 100,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> KMeansResult:
  """Clusters points by steps on small random batches (Sculley 2010).

  A step reads a batch in place of all rows; a last pass assigns them all. The
  inertia ends a few percent above that of `fit`, in a fraction of its time. It
  does not wait for convergence: `stop_reason` is MAX_STEPS. Meant for up to
  2**23 rows, beyond which draws in float32 miss some; `update` takes any
  number.

  Args:
    key: as for `fit`; restarts see the same batches. Batches are rows drawn by
      place, so that here the order of rows makes a difference.
    x: `[N, D]` points.
    num_clusters: K, at most N.
    batch_size: B rows of a batch, drawn with replacement in proportion to their
      weights.
    num_restarts: and those not named, as for `fit`. Starts are drawn from a
      sample of `max(3 B, 10 K)` rows.
    num_batches: steps of each restart.

  Returns:
    The run of least finite inertia over all points.

  Raises:
    InputError: for input that cannot be clustered.
  """
  numerics.check_count('batch_size', batch_size)
  numerics.check_count('num_batches', num_batches)
  x, sample_weight = numerics.check_points(x, sample_weight)
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  check_start(*x.shape, **options)
  numerics.check_rows('num_clusters', num_clusters, sample_weight)
  state = _start_from_sample(
    key, x, sample_weight, max(3 * batch_size, 10 * num_clusters), options
  )
  state = _run_minibatch(
    key,
    state,
    x,
    sample_weight,
    num_batches,
    batch_size=batch_size,
    block_size=block_size,
  )
  result = best(state)
  _warn_of_empty(result, stacklevel=3)
  return result


def start(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> KMeansState:
  """Seeds R runs and assigns the points once; arguments as for `fit`."""
  x, sample_weight = numerics.check_points(x, sample_weight)
  state, _ = _begin(
    key,
    x,
    sample_weight,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    metric=metric,
    block_size=block_size,
  )
  return state


def check_start(
  num_points: int,
  num_features: int,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
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
  _check_metric(metric)
  if not isinstance(init, str):
    check_centers('init', init, num_clusters, num_features)
  elif init not in seeding.SEEDINGS:
    names = ', '.join(seeding.SEEDINGS)
    raise InputError(f'init is {init!r}: it must be one of {names}, or centers')


def check_steps(max_steps: int, tol: float) -> None:
  """Checks the options that end a run.

  Raises:
    InputError: if they are out of range.
  """
  numerics.check_count('max_steps', max_steps)
  numerics.check_number('tol', tol)


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
    if num_steps is None), as the state has it; a run that has stopped repeats
    its last one.

  Raises:
    InputError: if shapes do not fit.
  """
  return _run(
    state,
    x,
    None,
    num_steps,
    max_steps=max_steps,
    tol=tol,
    sample_weight=sample_weight,
    block_size=block_size,
  )


@functools.partial(jax.jit, static_argnames=('num_steps', 'block_size'))
def _run(
  state,
  x,
  bounds,
  num_steps=None,
  *,
  max_steps,
  tol,
  sample_weight,
  block_size,
):
  """`run` from the bounds that the start has found, if any."""
  points = _points_for(state, x, sample_weight, block_size)
  advance = functools.partial(
    _advance, points=points, tol=tol, block_size=block_size
  )
  num_rows, limit = 0, jnp.broadcast_to(max_steps, state.num_steps.shape)
  if num_steps is not None:
    num_rows, limit = num_steps, jnp.minimum(limit, state.num_steps + num_steps)
  num_points, num_features = points.x.shape
  if bounds is None:
    bounds = _no_bounds(state, num_points)
  # Alone, a run on a CPU reads only the rows that it needs itself.
  width = num_features + state.counts.size
  in_turn = jax.default_backend() == 'cpu' and (
    numerics.block_rows(num_points, width) < num_points
  )
  iterate = _iterate_in_turn if in_turn else _iterate
  state, history = iterate(advance, state, bounds, limit, num_rows)
  inertia = _sum_inertia(state.centers, points, block_size)
  inertia = jnp.where(jnp.isfinite(inertia), inertia, state.inertia)
  state = state._replace(inertia=inertia)
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
  points = _points_for(state, x, sample_weight, block_size)
  bounds = _no_bounds(state, points.x.shape[0])
  return _advance(state, bounds, points, tol, block_size)[0]


def update(
  state: KMeansState,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  *,
  decay: float = 1.0,
  tol: float = 1e-4,
  block_size: int | None = None,
) -> KMeansState:
  """Takes one more batch of points into account (mini-batch k-means).

  Moves every center to the mean of the points it has been given so far, assigns
  those of the batch, and adds them. For data that come in parts: `start` on the
  first batch, `update` with each, `best` at the end.

  Args:
    state: R runs, from `start` or `update`.
    x: `[B, D]` a batch, in the units of the others; any size (a new size
      compiles anew; finite rows of weight 0 fill a batch up).
    sample_weight: `[B]` or None.
    decay: what the points before this batch weigh now; 1 forgets nothing.
    tol: as for `fit`, of the move of the centers in this call.
    block_size: as for `fit`.

  Returns:
    The new state; its inertia is that of the batch.

  Raises:
    InputError: if shapes do not fit or decay is not from 0 to 1.
  """
  numerics.check_number('decay', decay, high=1)
  return _update(state, x, sample_weight, decay, tol, block_size=block_size)


@functools.partial(jax.jit, static_argnames='block_size')
def _update(state, x, sample_weight, decay, tol, *, block_size):
  points = _points_for(state, x, sample_weight, block_size)
  bounds = _no_bounds(state, points.x.shape[0])
  past = decay * state.sums, decay * state.counts
  new, _ = _advance(state, bounds, points, tol, block_size, past)
  failed = state.stop_reason == StopReason.NONFINITE
  reason = jnp.where(failed, StopReason.NONFINITE, new.stop_reason)
  return new._replace(stop_reason=reason.astype(jnp.int32))


def in_units(state: KMeansState, scores: jax.Array) -> jax.Array:
  """Inertias of a state or of `run` in the data's units."""
  return scores * jnp.square(state.frame.scale)


@jax.jit
def best(state: KMeansState) -> KMeansResult:
  """Returns the run of least finite inertia, in the data's units."""
  index = numerics.best_finite(state.inertia)
  order = jnp.argsort(-state.counts[index], stable=True)
  return KMeansResult(
    centers=state.frame.leave(state.centers[index][order]),
    counts=state.counts[index][order],
    inertia=in_units(state, state.inertia[index]),
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    inertias=in_units(state, state.inertia),
  )


def predict(
  centers: jax.Array,
  x: jax.Array,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """Labels `[N]` int32 of the nearest of the centers `[K, D]`; ties: the first.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  x, _ = numerics.check_points(x)
  centers = _checked_centers(centers, x, metric)
  return _nearest(centers, x, metric=metric, block_size=block_size)[1]


def transform(
  centers: jax.Array,
  x: jax.Array,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """Distances `[N, K]` of points `[N, D]` from the centers `[K, D]`.

  With the cosine metric, `1 - cos`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  x, _ = numerics.check_points(x)
  centers = _checked_centers(centers, x, metric)
  return _distances(centers, x, metric=metric, block_size=block_size)


def score(
  centers: jax.Array,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  *,
  metric: str = 'euclidean',
  block_size: int | None = None,
) -> jax.Array:
  """The negative inertia `[]` of points `[N, D]`: higher is better.

  Raises:
    InputError: if shapes do not fit or x or the weights are out of range.
  """
  x, sample_weight = numerics.check_points(x, sample_weight)
  centers = _checked_centers(centers, x, metric)
  least, _ = _nearest(centers, x, metric=metric, block_size=block_size)
  return -numerics.dot(sample_weight, least)


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
  reason = int(result.stop_reason)
  if reason == StopReason.CONVERGED:
    _warn_of_empty(result, stacklevel=4)
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


def _warn_of_empty(result, stacklevel):
  num_clusters = result.counts.shape[0]
  if isinstance(result.counts, jax.core.Tracer):
    return
  occupied = int((result.counts > 0).sum())
  if occupied < num_clusters:
    warnings.warn(
      f'k-means found {occupied} distinct of {num_clusters} clusters: '
      'x has too few distinct rows',
      stacklevel=stacklevel,
    )


def _begin(
  key,
  x,
  sample_weight,
  *,
  num_clusters,
  num_restarts,
  init,
  metric,
  block_size,
):
  """`start` on checked points; returns the state, and bounds for `run`."""
  check_start(
    *x.shape,
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    metric=metric,
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
    metric=metric,
    block_size=block_size,
  )


def _check_metric(metric):
  if metric not in METRICS:
    raise InputError(
      f'metric is {metric!r}: it must be one of {", ".join(METRICS)}'
    )


def _checked_centers(centers, x, metric):
  _check_metric(metric)
  check_centers('centers', centers, None, x.shape[1])
  centers = jnp.asarray(centers).astype(numerics.float_dtype(x))
  if centers.ndim != 2:
    raise InputError(f'centers have shape {centers.shape}: it must be [K, D]')
  return centers


def _sphere(x, sample_weight, block_size):
  view = numerics.unit_rows
  return Sphere(numerics.find_frame(x, sample_weight, block_size, view).scale)


# Metric -> the frame of the data in which it is the distance.
METRICS = {'euclidean': numerics.find_frame, 'cosine': _sphere}


@functools.partial(
  jax.jit,
  static_argnames=(
    'num_clusters',
    'num_restarts',
    'init',
    'metric',
    'block_size',
  ),
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
  metric,
  block_size,
):
  narrow = _block_rows(x, 1, 1, block_size)
  frame = METRICS[metric](x, sample_weight, narrow)
  points = _points(x, sample_weight, frame, block_size)
  if init == 'given':
    centers = frame.enter(centers.reshape(-1, num_clusters, x.shape[1]))
  else:
    keys = jax.vmap(lambda r: jax.random.fold_in(key, r))(
      jnp.arange(num_restarts)
    )
    rows = seeding.SEEDINGS[init](
      keys,
      points,
      numerics.content_ids(x, sample_weight, narrow),
      num_clusters=num_clusters,
      block_size=_block_rows(x, num_restarts, 8, block_size),
    )
    centers = frame.enter(x[rows])
  return _first_state(centers, points, block_size)


def _start_from_sample(key, x, sample_weight, size, options):
  """`start` on so many rows that stand for all."""
  weight = sample_weight
  num_points = x.shape[0]
  if not isinstance(weight, jax.core.Tracer):  # else padding cannot be seen
    num_points = int((weight > 0).sum())
  if size < num_points:
    rows = _draw_rows(jax.random.fold_in(key, 0), sample_weight, size)
    x, weight = x[rows], jnp.ones_like(weight[:size])
  state, _ = _begin(key, x, weight, block_size=None, **options)
  return state


@functools.partial(jax.jit, static_argnames='size')
def _draw_rows(key, sample_weight, size):
  """Indices `[size]` drawn with replacement in proportion to weights `[N]`."""
  mass = jnp.cumsum(sample_weight)
  draws = jax.random.uniform(key, (size,), mass.dtype, 0, mass[-1])
  rows = jnp.searchsorted(mass, draws, side='right')
  return jnp.minimum(rows, jnp.argmax(mass)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('batch_size', 'block_size'))
def _run_minibatch(
  key, state, x, sample_weight, num_batches, *, batch_size, block_size
):
  """Updates with random batches, then assigns all points."""

  def body(step, state):
    key_of_step = jax.random.fold_in(key, step + 1)
    rows = _draw_rows(key_of_step, sample_weight, batch_size)
    return update(state, x[rows], block_size=block_size)

  state = lax.fori_loop(0, num_batches, body, state)
  points = _points(x, sample_weight, state.frame, block_size)
  last, _ = _first_state(state.centers, points, block_size)
  last = last._replace(num_steps=state.num_steps)
  return numerics.mark_out_of_steps(last, 0)


def _first_state(centers, points, block_size):
  """Runs that stand at centers `[R, K, D]` in the frame, and their bounds."""
  num_restarts = centers.shape[0]
  none = jnp.zeros((), centers.dtype)
  blank = KMeansState(
    frame=points.frame,
    centers=centers,
    sums=jnp.zeros_like(centers),
    counts=jnp.zeros_like(centers[..., 0]),
    inertia=jnp.full(num_restarts, none),
    num_steps=jnp.zeros(num_restarts, jnp.int32),
    stop_reason=jnp.full(num_restarts, StopReason.RUNNING, jnp.int32),
  )
  bounds = _no_bounds(blank, points.x.shape[0])
  state, bounds = _assign(blank, bounds, centers, points, block_size)
  reason = jnp.where(
    jnp.isfinite(state.inertia), StopReason.RUNNING, StopReason.NONFINITE
  )
  return state._replace(stop_reason=reason.astype(jnp.int32)), bounds


class _Bounds(NamedTuple):
  """What a pass over the points tells the next one."""

  labels: jax.Array  # [N, R] int32, -1 where there was no pass before
  upper: jax.Array  # [N, R] of the distance to the center of the label
  lower: jax.Array  # [N, R] of that to any other center
  moved: jax.Array  # [R, K] lengths of the rows by which sums were corrected


def _no_bounds(state, num_points):
  shape = num_points, state.inertia.shape[0]
  dtype = state.inertia.dtype
  return _Bounds(
    labels=jnp.full(shape, -1, jnp.int32),
    upper=jnp.full(shape, jnp.inf, dtype),
    lower=jnp.zeros(shape, dtype),
    moved=jnp.zeros_like(state.counts),
  )


def _points_for(state, x, sample_weight, block_size):
  """Points as a state sees them."""
  numerics.check_features(x, state.centers.shape[2])
  return _points(x, sample_weight, state.frame, block_size)


def _points(x, sample_weight, frame, block_size):
  x, sample_weight = numerics.as_arrays(x, sample_weight)
  norms = numerics.squared_norms(x, frame, _block_rows(x, 1, 1, block_size))
  return Points(x, sample_weight, norms, frame)


def _advance(state, bounds, points, tol, block_size, past=None):
  """One step of R runs; sums and counts of the past are added, if any.

  Returns:
    The new state and bounds.
  """
  occupied = state.counts > 0
  weight = jnp.where(occupied, state.counts, 1)[..., None]
  centers = state.frame.project(state.sums / weight)
  centers = jnp.where(occupied[..., None], centers, state.centers)
  centers, moves = lax.cond(
    jnp.all(occupied),
    lambda: (centers, jnp.zeros_like(occupied)),
    lambda: _relocate(centers, occupied, points, block_size),
  )
  shift = jnp.square(centers - state.centers).sum(axis=(1, 2))
  moved, bounds = _assign(state, bounds, centers, points, block_size)
  if past is not None:
    sums, counts = past
    moved = moved._replace(sums=sums + moved.sums, counts=counts + moved.counts)
  finite = jnp.isfinite(moved.inertia) & jnp.isfinite(shift)
  # An empty cluster is final only where no point is left for it.
  settled = jnp.all((moved.counts > 0) | (~occupied & ~moves), axis=1)
  reason = jnp.where(
    (shift <= tol) & settled, StopReason.CONVERGED, StopReason.RUNNING
  )
  moved = moved._replace(
    num_steps=state.num_steps + 1, stop_reason=reason.astype(jnp.int32)
  )
  stuck = state._replace(
    stop_reason=jnp.full_like(state.stop_reason, StopReason.NONFINITE)
  )
  return _choose(finite, moved, stuck), bounds


def _assign(state, bounds, centers, points, block_size):
  """Assigns the points to centers `[R, K, D]`.

  Sums and counts are those of the state, corrected by the rows whose label
  changes; where rounding could add up, they are new.

  Returns:
    The state with centers, sums, counts and inertia, and the new bounds.
  """
  num_restarts, num_clusters, _ = centers.shape
  weight, old = points.sample_weight, bounds.labels
  block_size = _block_rows(points.x, num_restarts, num_clusters, block_size)
  bounds = _loosen(bounds, state.centers, centers)
  bounds = _label(bounds, centers, points, block_size)

  def sum_changes(changed, old):
    return _sum_changes(
      changed & (weight > 0),
      old,
      bounds.labels,
      points,
      num_clusters,
      block_size,
    )

  changed = jnp.any(old != bounds.labels, axis=1)
  sums, counts, lengths = sum_changes(changed, old)
  is_first = jnp.all(old < 0)  # labels of weight 0 stay so
  kept = jnp.where(is_first, 0, 1)
  sums, counts = kept * state.sums + sums, kept * state.counts + counts
  moved = jnp.where(is_first, 0, bounds.moved + lengths)
  upper = jnp.where(weight[:, None] > 0, bounds.upper, 0)
  distance = jnp.sqrt(numerics.dot(weight, jnp.square(upper)) / weight.sum())
  drift = jnp.finfo(sums.dtype).eps * moved
  drifted = jnp.any(drift > _DRIFT * distance[:, None] * counts)
  everyone, nowhere = jnp.ones_like(changed), jnp.full_like(old, -1)
  sums, counts = lax.cond(
    drifted,
    lambda: sum_changes(everyone, nowhere)[:2],
    lambda: (sums, counts),
  )
  moved = jnp.where(drifted, 0, moved)
  state = state._replace(
    centers=centers,
    sums=sums,
    counts=counts,
    inertia=_inertia(centers, sums, counts, points, block_size),
  )
  return state, bounds._replace(moved=moved)


def _loosen(bounds, old, new):
  """The bounds, now that the centers `[R, K, D]` have moved."""
  eps = jnp.finfo(new.dtype).eps
  drift = jnp.sqrt(jnp.square(new - old).sum(axis=2))
  number = lax.broadcasted_iota(jnp.int32, drift.shape, 1)
  is_largest = number == lax.argmax(drift, 1, jnp.int32)[:, None]
  second = jnp.where(is_largest, 0, drift).max(axis=1, keepdims=True)
  others = jnp.where(is_largest, second, drift.max(axis=1, keepdims=True))

  def of_label(table):
    labels = jnp.maximum(bounds.labels, 0)
    return jnp.take_along_axis(table.T, labels, axis=0)

  return bounds._replace(
    upper=(bounds.upper + of_label(drift)) * (1 + 4 * eps),
    lower=(bounds.lower - of_label(others)) * (1 - 4 * eps),
  )


def _label(bounds, centers, points, block_size):
  """Labels the points that the bounds leave open, and bounds them anew."""
  num_points, num_restarts = bounds.labels.shape
  flat = centers.reshape(-1, centers.shape[2])
  longest = jnp.square(flat).sum(axis=1).max()

  def two_nearest(squared):
    squared = squared.reshape(num_restarts, -1, squared.shape[1])
    least, labels = numerics.nearest(squared)
    number = lax.broadcasted_iota(jnp.int32, squared.shape, 1)
    others = jnp.where(number == labels[:, None], jnp.inf, squared)
    return least, others.min(axis=1), labels

  def visit(bounds, rows, fresh):
    x, norms = points.frame.enter(points.x[rows]), points.norms[rows]
    least, second, labels = numerics.squared_distances(
      x, flat, norms, two_nearest
    )
    rounding = 8 * jnp.finfo(x.dtype).eps * (norms + longest)[None]
    found = (
      labels,
      jnp.sqrt(least + rounding),
      jnp.sqrt(jnp.maximum(second - rounding, 0)),
    )
    place = jnp.where(fresh, rows, num_points)
    return jax.tree.map(
      lambda a, b: a.at[place].set(b.T, mode='drop'), bounds, found
    )

  is_open = jnp.any(~(bounds.upper < bounds.lower), axis=1)
  labels, upper, lower = numerics.visit_rows(
    visit, bounds[:3], is_open & (points.sample_weight > 0), block_size
  )
  return _Bounds(labels, upper, lower, bounds.moved)


def _sum_changes(changed, old, new, points, num_clusters, block_size):
  """What rows whose labels `[N, R]` change add to the clusters.

  Returns:
    Sums `[R, K, D]`, counts `[R, K]`, and the lengths of the rows `[R, K]`.
  """
  shape = new.shape[1], num_clusters

  def visit(total, rows, fresh):
    weight = jnp.where(fresh, points.sample_weight[rows], 0)
    after, before = (
      numerics.members(labels[rows].T, num_clusters, weight.dtype)
      for labels in (new, old)
    )
    members = (after - before) * weight[None]
    part = (
      numerics.dot(members, points.frame.enter(points.x[rows])),
      members.sum(axis=1),
      numerics.dot(jnp.abs(members), jnp.sqrt(points.norms[rows])),
    )
    return jax.tree.map(jnp.add, total, part)

  width, dtype = shape[0] * shape[1], points.norms.dtype
  none = jnp.zeros(width, dtype)
  zeros = jnp.zeros((width, points.x.shape[1]), dtype), none, none
  total = numerics.visit_rows(visit, zeros, changed, block_size)
  return tuple(a.reshape(*shape, *a.shape[1:]) for a in total)


def _inertia(centers, sums, counts, points, block_size):
  """Inertias `[R]`, from sums `[R, K, D]` unless too little of them is left."""
  squares = numerics.dot(points.sample_weight, points.norms)
  lengths = jnp.square(centers).sum(axis=2)
  cross = (centers * sums).sum(axis=2)
  inertia = squares + (counts * lengths - 2 * cross).sum(axis=1)
  return lax.cond(
    jnp.any(inertia < _CANCELS * squares),
    lambda: _sum_inertia(centers, points, block_size),
    lambda: inertia,
  )


def _sum_inertia(centers, points, block_size):
  """Inertias `[R]` of centers `[R, K, D]`, from the distance of each point."""
  num_restarts, num_clusters, _ = centers.shape
  flat = centers.reshape(-1, centers.shape[2])

  def part(total, block, fresh):
    x, weight, norms = block
    least = numerics.squared_distances(
      points.frame.enter(x),
      flat,
      norms,
      lambda squared: squared.reshape(*centers.shape[:2], -1).min(axis=1),
    )
    return total + numerics.dot(least, jnp.where(fresh, weight, 0)), ()

  zeros = jnp.zeros(num_restarts, points.norms.dtype)
  block_size = _block_rows(points.x, num_restarts, num_clusters, block_size)
  return numerics.scan_blocks(part, zeros, points[:3], block_size)[0]


def _relocate(centers, occupied, points, block_size):
  """Moves centers without points to the points farthest from all centers.

  Returns:
    The centers `[R, K, D]`, and which of them have moved `[R, K]`.
  """
  x, sample_weight, norms, frame = points
  num_restarts, num_clusters, num_features = centers.shape
  flat = centers.reshape(-1, num_features)

  def distance(rows):
    squared = numerics.squared_distances(frame.enter(rows[0]), flat, rows[1])
    return squared.reshape(num_restarts, num_clusters, -1).min(axis=1).T

  squared = numerics.map_blocks(
    distance,
    (x, norms),
    _block_rows(x, num_restarts, num_clusters, block_size),
  )
  squared = jnp.where(sample_weight[:, None] > 0, squared, 0)
  count = min(num_clusters, x.shape[0])  # a batch may have fewer rows
  farthest, rows = lax.top_k(squared.T, count)
  rank = jnp.clip(jnp.cumsum(~occupied, axis=1) - 1, 0, count - 1)
  farthest = jnp.take_along_axis(farthest, rank, axis=1)
  candidates = frame.enter(x[jnp.take_along_axis(rows, rank, axis=1)])
  # A mean of equal rows is as far from them as its rounding.
  rounding = 64 * jnp.finfo(candidates.dtype).eps
  apart = farthest > rounding**2 * jnp.square(candidates).sum(axis=-1)
  moves = ~occupied & apart
  return jnp.where(moves[..., None], candidates, centers), moves


def _iterate(advance, state, bounds, limit, num_rows):
  """Steps runs side by side, each up to its limit `[R]`.

  Args:
    advance: (state, bounds) -> (state, bounds), one step of all its runs.
    state: R runs.
    bounds: of their points.
    limit: `[R]` steps.
    num_rows: S, of the history.

  Returns:
    The new state, and the inertias after each step `[S, R]`.
  """
  begun = state.num_steps
  rows = lax.iota(jnp.int32, num_rows)[:, None]

  def is_active(state):
    running = state.stop_reason == StopReason.RUNNING
    return running & (state.num_steps < limit)

  def body(carry):
    old, bounds, history = carry
    active = is_active(old)
    new, bounds = advance(old, bounds)
    new = _choose(active, new, old)
    # The points of a run that has stopped are closed, whatever comes.
    upper = jnp.where(active[None], bounds.upper, -jnp.inf)
    since = (rows >= (old.num_steps - begun)[None]) & active[None]
    history = jnp.where(since, new.inertia[None], history)
    return new, bounds._replace(upper=upper), history

  history = jnp.broadcast_to(state.inertia[None], (num_rows, *begun.shape))
  state, _, history = lax.while_loop(
    lambda carry: jnp.any(is_active(carry[0])), body, (state, bounds, history)
  )
  return state, history


def _iterate_in_turn(advance, state, bounds, limit, num_rows):
  """`_iterate`, one run after another."""
  frame = state.frame

  def iterate_one(one):
    run, (*columns, moved), limit = jax.tree.map(lambda a: a[None], one)
    bounds = _Bounds(*(a.T for a in columns), moved)
    state, history = _iterate(
      advance, run._replace(frame=frame), bounds, limit, num_rows
    )
    return jax.tree.map(lambda a: a[0], state._replace(frame=None)), history

  *columns, moved = bounds
  bounds = (*(a.T for a in columns), moved)
  runs = state._replace(frame=None), bounds, limit
  runs, history = lax.map(iterate_one, runs)
  return runs._replace(frame=frame), history[:, :, 0].T


@functools.partial(jax.jit, static_argnames=('metric', 'block_size'))
def _nearest(centers, x, *, metric, block_size):
  """Squared distances `[N]` to the nearest centers, and labels `[N]`."""
  frame, squared_distances = _seen_from(centers, metric)

  def part(x):
    least, labels = numerics.nearest(squared_distances(x)[None])
    return least[0], labels[0]

  block_size = _block_rows(x, 1, centers.shape[0], block_size)
  least, labels = numerics.map_blocks(part, x, block_size)
  return least * jnp.square(frame.scale), labels


@functools.partial(jax.jit, static_argnames=('metric', 'block_size'))
def _distances(centers, x, *, metric, block_size):
  frame, squared_distances = _seen_from(centers, metric)
  block_size = _block_rows(x, 1, centers.shape[0], block_size)
  squared = numerics.map_blocks(lambda x: squared_distances(x).T, x, block_size)
  if metric == 'cosine':
    return squared * jnp.square(frame.scale) / 2
  return jnp.sqrt(squared) * frame.scale


def _seen_from(centers, metric):
  """A frame made for the centers `[K, D]`, and squared distances in it."""
  one = jnp.ones((), centers.dtype)
  if metric == 'cosine':
    frame = Sphere(one)
  else:
    offset = centers.mean(axis=0)
    spread = jnp.abs(centers - offset[None]).max()
    frame = Frame(offset, jnp.where(spread > 0, spread, one))
  centers = frame.enter(centers)

  def squared_distances(x):
    x = frame.enter(x)
    norms = jnp.square(x).sum(axis=1)
    return numerics.squared_distances(x, centers, norms)

  return frame, squared_distances


def _block_rows(x, num_restarts, num_clusters, block_size):
  """Rows of a block of a pass with R K columns, unless the caller says."""
  width = x.shape[1] + num_restarts * num_clusters
  return numerics.block_rows(x.shape[0], width, block_size)


def _choose(mask, new, old):
  """Takes each run from new where mask `[R]` says so, else from old."""
  chosen = jax.tree.map(
    lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b),
    new._replace(frame=None),
    old._replace(frame=None),
  )
  return chosen._replace(frame=new.frame)

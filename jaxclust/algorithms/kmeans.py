"""k-means: Lloyd's algorithm on all rows or on mini-batches, runs together.

Minimises the inertia `sum_n w_n min_k |x_n - c_k|^2`. A step moves each center
to the weighted mean of its points and assigns all points anew. The cosine
metric is the same on rows of length one, with centers moved back to length one
after each step (spherical k-means): the inertia is then twice the sum of
`1 - cos`.

Axes: N points, D features, K clusters, R runs (restarts), B rows of a block.

References:
  Lloyd (1982), Least squares quantization in PCM,
    https://doi.org/10.1109/TIT.1982.1056489
  Dhillon and Modha (2001), Concept decompositions for large sparse text data
    using clustering, https://doi.org/10.1023/A:1007612920971
  Sculley (2010), Web-scale k-means clustering,
    https://doi.org/10.1145/1772690.1772862
"""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms import seeding, solver
from jaxclust.algorithms.distances import squared_distances
from jaxclust.algorithms.lloyd import LLOYD, Clusters, assign
from jaxclust.algorithms.pruning import PRUNED
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.frames import Frame, Sphere
from jaxclust.inputs import (
  METRICS,
  bucket,
  check_values,
  describe,
  on_any_mesh,
  place,
)
from jaxclust.rows import Rows, block_rows, map_rows, reduce_rows, take_rows


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


@on_any_mesh
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

  >>> import jax
  >>> import numpy as np
  >>> x = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
  >>> result = fit(jax.random.key(0), x, num_clusters=2)
  >>> sorted(result.centers[:, 0].tolist())
  [0.5, 10.5]

  Args:
    key: a JAX random key; each restart draws from `fold_in(key, restart)`.
    x: `[N, D]` points: a JAX array, which may be sharded by rows, or what NumPy
      takes; an array that is larger than the device's memory is streamed.
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
  rows, starts = _prepare(
    x, sample_weight, block_size, num_clusters, num_restarts, init, metric
  )
  state = begin(key, rows, starts, num_clusters, num_restarts)
  state, _ = run_rows(state, rows, max_steps=max_steps, tol=tol)
  result = best(state)
  warn(result)
  return result


@on_any_mesh
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
  """Clusters points by steps on small random mini-batches (Sculley 2010).

  A step reads a mini-batch in place of all rows; a last pass assigns all rows.
  The inertia ends a few percent above that of `fit`, in a fraction of its time.
  The fit does not wait for convergence: `stop_reason` is MAX_STEPS. Draws are
  in float32, which misses some of more than 2**23 rows; `update` takes any
  number.

  Args:
    key: as for `fit`; restarts see the same mini-batches.
    x: `[N, D]` points.
    num_clusters: K, at most N.
    batch_size: B rows of a mini-batch, drawn with replacement in proportion to
      their weights.
    num_restarts: and those not named, as for `fit`. Starts are drawn from a
      sample of `max(3 B, 10 K)` rows.
    num_batches: steps of each restart.

  Returns:
    The run of least finite inertia over all points.

  Raises:
    InputError: for input that cannot be clustered.
  """
  checks.check_count('batch_size', batch_size)
  checks.check_count('num_batches', num_batches)
  rows, starts = _prepare(
    x, sample_weight, block_size, num_clusters, num_restarts, init, metric
  )
  keys = [jax.random.fold_in(key, purpose) for purpose in range(3)]
  size = max(3 * batch_size, 10 * num_clusters)
  some = _sample(keys[1], rows, size)
  state = begin(keys[0], some, starts, num_clusters, num_restarts)
  state = state._replace(frame=rows.frame)
  result = best(_run_minibatch(keys[2], state, rows, num_batches, batch_size))
  _warn_of_empty(result, stacklevel=4)
  return result


@on_any_mesh
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
) -> Solution:
  """Seeds R runs and assigns the points once; arguments as for `fit`."""
  rows, starts = _prepare(
    x, sample_weight, block_size, num_clusters, num_restarts, init, metric
  )
  return begin(key, rows, starts, num_clusters, num_restarts)


@on_any_mesh
def run(
  state: Solution,
  x: jax.Array,
  num_steps: int | None = None,
  *,
  max_steps: int = 300,
  tol: float = 1e-4,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> tuple[Solution, jax.Array]:
  """Makes further steps of every run that has not ended.

  Args:
    state: R runs, from `start` or `run`.
    x: `[N, D]` the same points.
    num_steps: most steps of this call; None to go on until all have ended.
    max_steps: most steps of a run over all calls.
    tol: as for `fit`.
    sample_weight: `[N]` or None.
    block_size: as for `fit`.

  Returns:
    The new state, and the inertias after each of the first `solver.HISTORY`
    steps `[S, R]` in the state's coordinates; a run that has ended repeats its
    last one.

  Raises:
    InputError: if shapes do not fit.
  """
  rows = _further(state, x, sample_weight, block_size)
  return run_rows(
    state, rows, num_steps=num_steps, max_steps=max_steps, tol=tol
  )


@on_any_mesh
def update(
  state: Solution,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  *,
  decay: float = 1.0,
  block_size: int | None = None,
) -> Solution:
  """Takes one more mini-batch of points into account.

  Assigns the points of the batch, adds them to those given so far, and moves
  each center to the mean of its points. For data that come in parts: `start` on
  the first batch, `update` with each further one, `best` at the end.

  Args:
    state: R runs, from `start` or `update`.
    x: `[B, D]` a mini-batch, in the units of the others.
    sample_weight: `[B]` or None.
    decay: weight of the points before this batch; 1 forgets nothing.
    block_size: as for `fit`.

  Returns:
    The new state; its inertia is that of the batch before the centers moved. A
    batch that is not finite is left out: `stop_reason` is NONFINITE until the
    next one.

  Raises:
    InputError: if shapes do not fit or decay is not from 0 to 1.
  """
  checks.check_number('decay', decay, high=1)
  rows = _further(state, x, sample_weight, block_size)
  return solver.partial_fit(LLOYD, state, rows, decay, 0.0)


def best(state: Solution) -> KMeansResult:
  """Returns the run of least finite inertia, in the data's units."""
  lib = jnp if checks.is_traced(state) else np
  state = jax.tree.map(lib.asarray, state)
  index = solver.best_run(state.objective)
  counts, active = state.stats.counts[index], state.params.active[index]
  order = lib.argsort(-lib.where(active, counts, -1), stable=True)
  if lib is np:
    order = order[: active.sum()]
  scale = lib.square(state.frame.scale)
  result = KMeansResult(
    centers=state.frame.invert(state.params.centers[index][order]),
    counts=counts[order],
    inertia=state.objective[index] * scale,
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    inertias=state.objective * scale,
  )
  return jax.tree.map(jnp.asarray, result)


def centers_of_runs(state: Solution) -> jax.Array:
  """The centers `[R, K, D]` of all runs, in the data's units."""
  centers = state.frame.invert(state.params.centers)
  if checks.is_traced(state):
    return centers
  return centers[:, : int(np.asarray(state.params.active[0]).sum())]


@on_any_mesh
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
  rows, labels = _apply(_labels, centers, x, None, metric, block_size)
  return rows.trim(labels)


@on_any_mesh
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
  rows, distances = _apply(_distances, centers, x, None, metric, block_size)
  distances = rows.trim(distances)[:, : np.shape(centers)[0]]
  return jnp.square(distances) / 2 if metric == 'cosine' else distances


@on_any_mesh
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
  _, inertia = _apply(
    _inertia, centers, x, sample_weight, metric, block_size
  )
  return -inertia


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
  checks.check_groups('num_clusters', num_clusters, num_points)
  checks.check_count('num_restarts', num_restarts)
  checks.check_choice('metric', metric, METRICS)
  if not isinstance(init, str):
    checks.check_centers('init', init, num_clusters, num_features)
  elif init not in seeding.SEEDINGS:
    names = ', '.join(seeding.SEEDINGS)
    raise InputError(f'init is {init!r}: it must be one of {names}, or centers')


def check_steps(max_steps: int, tol: float) -> None:
  """Checks the options that end a run.

  Raises:
    InputError: if they are out of range.
  """
  checks.check_count('max_steps', max_steps)
  checks.check_number('tol', tol)


def warn(result: KMeansResult) -> None:
  """Warns of what a concrete result falls short of."""
  if checks.is_traced(result):
    return
  reason = int(result.stop_reason)
  if reason == StopReason.CONVERGED:
    _warn_of_empty(result, stacklevel=5)
  if reason == StopReason.MAX_STEPS:
    warnings.warn(
      f'k-means did not converge in {int(result.num_steps)} steps: '
      'raise max_steps or tol',
      stacklevel=4,
    )
  if reason == StopReason.NONFINITE:
    warnings.warn(
      'k-means stopped: the inertia is not finite; look for NaN or very large '
      'values in x',
      stacklevel=4,
    )


def _warn_of_empty(result, stacklevel):
  if checks.is_traced(result):
    return
  num_clusters = len(result.counts)
  occupied = int((np.asarray(result.counts) > 0).sum())
  if occupied < num_clusters:
    warnings.warn(
      f'k-means found {occupied} distinct of {num_clusters} clusters: '
      'x has too few distinct rows',
      stacklevel=stacklevel,
    )


def _prepare(
  x, sample_weight, block_size, num_clusters, num_restarts, init, metric
):
  """Checked rows in their frame, and a seeding or centers `[R, K, D]`."""
  rows = place(x, sample_weight, block_size=block_size)
  check_start(
    rows.shape[0] - rows.num_padded,
    rows.shape[1],
    num_clusters=num_clusters,
    num_restarts=num_restarts,
    init=init,
    metric=metric,
  )
  checks.check_positive_rows('num_clusters', num_clusters, rows.weight)
  rows = describe(rows, metric)
  if isinstance(init, str):
    return rows, init
  lib = jnp if checks.is_traced(init) else np
  centers = lib.asarray(init).astype(rows.dtype)
  centers = centers.reshape(-1, *centers.shape[-2:])
  return rows, rows.frame.apply(centers)


def begin(
  key: jax.Array,
  rows: Rows,
  starts: Any,
  num_clusters: int,
  num_restarts: int,
) -> Solution:
  """Seeds R runs on rows in a frame, and assigns these once.

  Args:
    key: a JAX random key.
    rows: N rows.
    starts: of `seeding.SEEDINGS`, or centers `[R, K, D]` in the frame.
    num_clusters: K.
    num_restarts: R, unless centers are given.
  """
  size = padded_groups(num_clusters, rows)
  if isinstance(starts, str):
    starts = seeding.seed_centers(
      starts, key, rows, num_clusters, num_restarts, size
    )
  params = _pad(starts, num_clusters, size)
  if rows.is_streamed:
    return solver.begin(LLOYD, params, rows)
  traced = checks.is_traced(params, rows)

  def begin_one(params):
    return solver.begin(LLOYD, params, rows)._replace(frame=())

  state = solver.each_run(begin_one, params, traced)
  return state._replace(frame=rows.frame)


def padded_groups(num_groups: int, rows: Rows) -> int:
  """How many clusters are compiled for; small arrays share a few numbers."""
  if checks.is_traced(rows) or not rows.is_small:
    return num_groups
  return bucket(num_groups, 4)


def _pad(centers, num_clusters, size):
  """Clusters `[R, K, D]`, padded to `size` of them."""
  missing = size - centers.shape[1]
  if missing:
    centers = np.pad(np.asarray(centers), ((0, 0), (0, missing), (0, 0)))
  active = np.arange(size) < num_clusters
  return Clusters(centers, np.tile(active, (len(centers), 1)))


def run_rows(state: Solution, rows: Rows, **options: Any) -> tuple:
  """`run` on rows in the frame of the state."""
  prunes = jax.default_backend() == 'cpu' and not rows.is_streamed
  block = block_rows(rows.shape[0], rows.shape[1] + state.params.active.size)
  prunes = prunes and block < rows.shape[0]
  return solver.run(PRUNED if prunes else LLOYD, state, rows, **options)


def _further(state, x, sample_weight, block_size):
  """Rows of further points, in the frame of a state."""
  checks.check_features(x, state.params.centers.shape[2])
  rows = place(x, sample_weight, block_size=block_size)
  return dataclasses.replace(rows, frame=state.frame)


def _sample(key, rows, size):
  """So many rows that stand for all, in their frame."""
  weight = rows.weight
  traced = checks.is_traced(weight)  # else padding is known
  num_points = rows.shape[0] if traced else int((weight > 0).sum())
  if size >= num_points and not rows.is_streamed:
    return rows
  seed = jax.random.bits(key, dtype=jnp.uint32)
  return seeding.sample_rows(seed, rows, min(size, num_points))


def _run_minibatch(key, state, rows, num_batches, batch_size):
  """Updates with random mini-batches, then assigns all points."""
  if rows.is_streamed:
    mass = jnp.cumsum(jnp.asarray(rows.weight))
    for step in range(num_batches):
      state = _update_at(step, key, state, rows, mass, batch_size)
  else:
    state = _update_many(key, state, rows, num_batches, batch_size)
  steps = state.num_steps
  state = solver.begin(LLOYD, state.params, rows)
  reason = jnp.where(
    solver.is_running(state), StopReason.MAX_STEPS, state.stop_reason
  )
  return state._replace(num_steps=steps, stop_reason=reason)


@functools.partial(jax.jit, static_argnames='batch_size')
def _update_many(key, state, rows, num_batches, batch_size):
  mass = jnp.cumsum(rows.weight)

  def body(step, state):
    return _update_at(step, key, state, rows, mass, batch_size)

  return lax.fori_loop(0, num_batches, body, state)


def _update_at(step, key, state, rows, mass, batch_size):
  """The state after a mini-batch drawn in proportion to weights, whose
  cumulative sums are `mass` `[N]`."""
  place = _draw_places(jax.random.fold_in(key, step), mass, batch_size)
  x = take_rows(rows, place)
  batch = Rows(x, jnp.ones(batch_size, mass.dtype), state.frame)
  return solver.partial_fit(LLOYD, state, batch, 1.0, 0.0)


@functools.partial(jax.jit, static_argnames='count')
def _draw_places(key, mass, count):
  draws = jax.random.uniform(key, (count,), mass.dtype, 0, mass[-1])
  places = jnp.searchsorted(mass, draws, side='right')
  return jnp.minimum(places, jnp.argmax(mass)).astype(jnp.int32)


def _apply(fn, centers, x, sample_weight, metric, block_size):
  """The rows, and `fn(params, rows)` of centers `[K, D]`, in a frame made for
  them."""
  checks.check_choice('metric', metric, METRICS)
  rows = check_values(place(x, sample_weight, block_size=block_size))
  checks.check_centers('centers', centers, None, rows.shape[1])
  lib = jnp if checks.is_traced(centers) else np
  centers = lib.asarray(centers).astype(rows.dtype)
  if centers.ndim != 2:
    raise InputError(f'centers have shape {centers.shape}: it must be [K, D]')
  params = _pad(centers[None], len(centers), padded_groups(len(centers), rows))
  apply = _apply_to_rows if rows.is_streamed else _apply_compiled
  return rows, apply(fn, metric, params, rows)


def _apply_to_rows(fn, metric, params, rows):
  one = jnp.ones((), params.centers.dtype)
  frame = Sphere(one)
  if metric == 'euclidean':
    shown = params.active[..., None]
    total = jnp.where(shown, params.centers, 0).sum(axis=(0, 1))
    offset = total / params.active.sum()
    spread = jnp.abs(params.centers - offset[None, None])
    spread = jnp.where(shown, spread, 0).max()
    frame = Frame(offset, jnp.where(spread > 0, spread, one))
  params = params._replace(centers=frame.apply(params.centers))
  return fn(params, dataclasses.replace(rows, frame=frame))


_apply_compiled = jax.jit(_apply_to_rows, static_argnums=(0, 1))


def _labels(params, rows):
  return map_rows(_label_block, params, rows, width=params.active.size)


def _label_block(params, x):
  return assign(params, x)[1][0]


def _distances(params, rows):
  squared = map_rows(_squared_block, params, rows, width=params.active.size)
  return jnp.sqrt(squared) * rows.frame.scale


def _squared_block(params, x):
  return squared_distances(x, params.centers[0]).T


def _inertia(params, rows):
  stats = reduce_rows(LLOYD.stats, params, rows, width=params.active.size)
  return stats.inertia[0] * jnp.square(rows.frame.scale)

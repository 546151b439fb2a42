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

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms import runs, seeding, solver
from jaxclust.algorithms.lloyd import LLOYD
from jaxclust.algorithms.prediction import (  # noqa: F401, names of this module
  predict,
  score,
  transform,
)
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.inputs import METRICS, on_any_mesh, prepare
from jaxclust.programs import compiled
from jaxclust.rows import Rows, cumulate, take_rows

# Steps and mini-batches of a state from `start`.
run = functools.partial(runs.run, max_steps=300, tol=1e-4)
update = functools.partial(runs.update, decay=1.0)


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
  >>> np.sort(result.centers[:, 0]).round(3).tolist()
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
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  ends = {'max_steps': max_steps, 'tol': tol}
  rows = _prepare(x, sample_weight, block_size, **options, **ends)
  state = runs.seeded(key, rows, num_clusters, num_restarts, init)
  state, _ = runs.run_rows(state, rows, **ends)
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
  checks.check_key(key)
  checks.check_count('batch_size', batch_size)
  checks.check_count('num_batches', num_batches)
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  rows = _prepare(x, sample_weight, block_size, **options)
  keys = [jax.random.fold_in(key, purpose) for purpose in range(3)]
  size = max(3 * batch_size, 10 * num_clusters)
  some = seeding.sample(keys[1], rows, size)
  clusters = seeding.seed(keys[0], some, num_clusters, num_restarts, init)
  state = solver.begin(LLOYD, clusters, some)
  state = _run_batches(keys[2], state, rows, num_batches, batch_size)
  result = best(state)
  warn(result, in_batches=True)
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
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  rows = _prepare(x, sample_weight, block_size, **options)
  state = runs.seeded(key, rows, num_clusters, num_restarts, init)
  return runs.first_step(state, rows)


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
  return jax.device_put(result)


def centers_of_runs(state: Solution) -> jax.Array:
  """The centers `[R, K, D]` of all runs, in the data's units."""
  centers = state.frame.invert(state.params.centers)
  if checks.is_traced(state):
    return centers
  return centers[:, : int(np.asarray(state.params.active[0]).sum())]


def check(
  num_points: int,
  num_features: int,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  max_steps: int = 300,
  tol: float = 1e-4,
) -> None:
  """Raises an InputError if options of `fit` do not fit the shape of x."""
  checks.check_groups('num_clusters', num_clusters, num_points)
  checks.check_count('num_restarts', num_restarts)
  checks.check_choice('metric', metric, METRICS)
  checks.check_count('max_steps', max_steps)
  checks.check_number('tol', tol)
  if not isinstance(init, str):
    checks.check_centers('init', init, num_clusters, num_features)
  elif init not in seeding.SEEDINGS:
    names = ', '.join(seeding.SEEDINGS)
    raise InputError(f'init is {init!r}: it must be one of {names}, or centers')


_prepare = functools.partial(prepare, check, 'num_clusters')


def warn(result: KMeansResult, in_batches: bool = False) -> None:
  """Warns of what a concrete result falls short of.

  A fit on mini-batches does not wait for convergence.
  """
  if checks.is_traced(result):
    return
  reason = int(result.stop_reason)
  num_clusters = len(result.counts)
  occupied = int((np.asarray(result.counts) > 0).sum())
  if reason == StopReason.MAX_STEPS and not in_batches:
    checks.warn(
      f'k-means did not converge in {int(result.num_steps)} steps: '
      'raise max_steps or tol'
    )
  elif reason == StopReason.NONFINITE:
    checks.warn(
      'k-means stopped: the inertia is not finite; look for NaN or very large '
      'values in x'
    )
  elif occupied < num_clusters:
    checks.warn(
      f'k-means found {occupied} distinct of {num_clusters} clusters: '
      'x has too few distinct rows'
    )


def _run_batches(key, state, rows, num_batches, batch_size):
  """Updates R runs with mini-batches drawn in proportion to the weights, then
  assigns all points."""

  def update(runs):
    return _update(key, runs, rows, num_batches, batch_size)

  runs = state._replace(frame=())
  if rows.is_streamed:  # each batch is read once for all runs
    runs = update(runs)
  else:
    runs = solver.each_run(update, runs, checks.is_traced(key, state, rows))
  new = solver.begin(LLOYD, runs.params, rows)
  lib = jnp if checks.is_traced(new) else np
  reason = lib.where(
    solver.is_running(new), StopReason.MAX_STEPS, new.stop_reason
  )
  return new._replace(num_steps=runs.num_steps, stop_reason=reason)


@functools.partial(compiled, static=(4,))
def _update(key, runs, rows, num_batches, batch_size):
  mass = jnp.asarray(cumulate(rows, rows.weight))

  def body(step, runs):
    place = _draw_places(jax.random.fold_in(key, step), mass, batch_size)
    weight = jnp.ones(batch_size, mass.dtype)
    batch = Rows(take_rows(rows, place), weight, rows.frame)
    return solver.partial_fit(LLOYD, runs, batch, 1.0, 0.0)

  if not rows.is_streamed:
    return lax.fori_loop(0, num_batches, body, runs)
  for step in range(num_batches):
    runs = body(step, runs)
  return runs


@functools.partial(jax.jit, static_argnames='count')
def _draw_places(key, mass, count):
  draws = jax.random.uniform(key, (count,), mass.dtype, 0, mass[-1])
  places = jnp.searchsorted(mass, draws, side='right')
  return jnp.minimum(places, jnp.argmax(mass)).astype(jnp.int32)

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
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclust import checks
from jaxclust.algorithms import minibatches, runs, seeding, solver, tiles
from jaxclust.algorithms.lloyd import LLOYD, Sums, pad
from jaxclust.algorithms.prediction import (
  predict,
  score,
  transform,
)
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.frames import Frame, Sphere
from jaxclust.inputs import (
  LEAST_GROUPS,
  METRICS,
  bucket,
  on_any_mesh,
  prepare,
)

__all__ = [
  'KMeansResult',
  'best',
  'centers_of_runs',
  'check',
  'fit',
  'fit_minibatch',
  'in_units',
  'keep_best',
  'predict',
  'resume',
  'run',
  'score',
  'start',
  'transform',
  'update',
  'warn',
]

# Steps and mini-batches of a state from `start`.
run = functools.partial(runs.run, max_steps=300, tol=1e-4)
update = functools.partial(runs.update, decay=1.0)


class KMeansResult(NamedTuple):
  """The best of the runs, in the data's units.

  Clusters come by falling size, or in the order of starts that were given.
  """

  centers: jax.Array  # [K, D]
  counts: jax.Array  # [K] weights of each cluster's points
  inertia: jax.Array  # []
  num_steps: jax.Array  # [] int32
  stop_reason: jax.Array  # [] int32, a StopReason
  inertias: jax.Array  # [R] of all runs
  history: Any = ()  # [S] after 0, 1, ... steps of `fit`, as for `run`

  @property
  def converged(self) -> jax.Array:
    return self.stop_reason == StopReason.CONVERGED


@on_any_mesh
def fit(
  key: jax.Array,
  x: ArrayLike,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  max_steps: int = 300,
  tol: float = 1e-4,
  precision: str = 'highest',
  sample_weight: ArrayLike | None = None,
  block_size: int | None = None,
) -> KMeansResult:
  """Clusters points by k-means, from several starts, and keeps the best.

  Examples:
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
    precision: 'highest', or 'tf32': NVIDIA's GPUs compare distances by products
      of 11 bits, and a last pass makes counts and inertias accurate. Not for
      clusters that are tight and far apart, whose distances these blur.
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
  checks.check_choice('precision', precision, tiles.PRECISIONS)
  rows = _prepare(x, sample_weight, block_size, **options, **ends)
  start_from = num_clusters, num_restarts, init
  state = runs.seeded(key, rows, *start_from, precision=precision)
  in_order = not isinstance(init, str)
  result = _run_to_the_end(state, rows, precision, in_order, **ends)
  warn(result)
  return result


def _run_to_the_end(state, rows, precision, in_order, **ends):
  """The result of runs before their first pass, with its history."""
  ended, history = runs.run_rows(state, rows, precision, **ends)
  history = in_units(ended, solver.history_of_best(state, ended, history))
  result = best(ended, in_order)
  return result._replace(history=jax.device_put(history))


@on_any_mesh
def fit_minibatch(
  key: jax.Array,
  x: ArrayLike,
  *,
  num_clusters: int,
  batch_size: int = 1024,
  num_restarts: int = 3,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  num_batches: int = 100,
  tol: float = 0.0,
  patience: int | None = None,
  sample_size: int | None = None,
  sample_weight: ArrayLike | None = None,
  block_size: int | None = None,
) -> KMeansResult:
  """Clusters points by steps on small random mini-batches (Sculley 2010).

  A step reads a mini-batch in place of all rows; a last pass assigns all rows.
  The inertia ends a few percent above that of `fit`, in a fraction of its time.
  `stop_reason` is MAX_STEPS where neither tol nor patience end a restart. Draws
  are in float32, which misses some of more than 2**23 rows; `update` takes any
  number.

  Args:
    key: as for `fit`; restarts see the same mini-batches.
    x: `[N, D]` points.
    num_clusters: K, at most N.
    batch_size: B rows of a mini-batch, drawn with replacement in proportion to
      their weights.
    num_restarts: and those not named, as for `fit`.
    num_batches: most steps of a restart.
    tol: a restart has converged when a batch moves its centers by at most this,
      as for `fit`; 0 to go on.
    patience: a restart has converged when the smoothed inertia of so many
      batches in a row is no less than before; None to go on.
    sample_size: rows from which starts are drawn, at least K; `max(3 B, 10 K)`
      if None.

  Returns:
    The run of least finite inertia over all points.

  Raises:
    InputError: for input that cannot be clustered.
  """
  checks.check_key(key)
  size = minibatches.sample_size(sample_size, batch_size, num_clusters)
  ends = minibatches.ends(num_batches, tol, patience)
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  rows = _prepare(x, sample_weight, block_size, **options)
  keys = [jax.random.fold_in(key, purpose) for purpose in range(3)]
  some = seeding.sample(keys[1], rows, size)
  clusters = seeding.seed(keys[0], some, num_clusters, num_restarts, init)
  state = solver.begin(LLOYD, clusters, some)
  state = minibatches.run(keys[2], state, rows, ends, batch_size)
  result = best(state, in_order=not isinstance(init, str))
  warn(result, in_batches=True)
  return result


@on_any_mesh
def start(
  key: jax.Array,
  x: ArrayLike,
  *,
  num_clusters: int,
  num_restarts: int = 10,
  init: Any = 'k-means++',
  metric: str = 'euclidean',
  sample_weight: ArrayLike | None = None,
  block_size: int | None = None,
) -> Solution:
  """Seeds R runs and assigns the points once; arguments as for `fit`."""
  options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
  options |= {'init': init, 'metric': metric}
  rows = _prepare(x, sample_weight, block_size, **options)
  state = runs.seeded(key, rows, num_clusters, num_restarts, init)
  return runs.first_step(state, rows)


def best(state: Solution, in_order: bool = False) -> KMeansResult:
  """Returns the run of least finite inertia, in the data's units.

  Clusters come by falling size, or with `in_order` as they stand in the state.
  """
  lib = jnp if checks.is_traced(state) else np
  state = jax.tree.map(lib.asarray, state)
  index = solver.best_run(state.objective)
  counts, active = state.stats.counts[index], state.params.active[index]
  size = lib.where(active, 0 if in_order else counts, -1)
  order = lib.argsort(-size, stable=True)
  if lib is np:
    order = order[: active.sum()]
  inertias = in_units(state, state.objective)
  result = KMeansResult(
    centers=state.frame.invert(state.params.centers[index][order]),
    counts=counts[order],
    inertia=inertias[index],
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    inertias=inertias,
  )
  return jax.device_put(result)


def in_units(state: Solution, inertias: jax.Array) -> jax.Array:
  """Inertias of a state's coordinates in the data's units."""
  lib = jnp if checks.is_traced(state) else np
  return inertias * lib.square(lib.asarray(state.frame.scale))


def resume(result: KMeansResult, metric: str = 'euclidean') -> Solution:
  """A state of one run that stands where a fit has ended.

  For `update` with points that come later: those of the fit weigh what they
  did, with the cosine metric but for how much clusters differ in spread.
  Clusters stay in their order, which `best(state, in_order=True)` keeps.
  """
  lib = jnp if checks.is_traced(result) else np
  result = jax.tree.map(lib.asarray, result)
  missing = bucket(len(result.counts), LEAST_GROUPS) - len(result.counts)
  centers = lib.pad(result.centers, ((0, missing), (0, 0)))
  counts = lib.pad(result.counts, (0, missing))
  total = counts.sum()
  mean = (counts[:, None] * centers).sum(axis=0) / total
  between = counts * lib.square(centers - mean[None]).sum(axis=1)
  variance = (result.inertia + between.sum()) / (total * centers.shape[1])
  scale = lib.sqrt(lib.where(variance > 0, variance, 1))
  frame = Sphere(scale) if metric == 'cosine' else Frame(mean, scale)
  centers = lib.asarray(frame.apply(centers))
  sums = counts[:, None] * centers
  if metric == 'cosine':  # means of directions are shorter than these
    sums = sums * (1 - result.inertia / (2 * total))
  inertia = result.inertia[None] / lib.square(scale)
  return Solution(
    frame=frame,
    params=pad(centers[None], len(result.counts), len(centers)),
    stats=Sums(sums[None], counts[None], inertia),
    objective=inertia,
    num_steps=result.num_steps[None],
    stop_reason=lib.full((1,), StopReason.RUNNING, lib.int32),
  )


def keep_best(state: Solution) -> Solution:
  """The state of the run of least finite inertia alone."""
  lib = jnp if checks.is_traced(state) else np
  runs = jax.tree.map(lib.asarray, state._replace(frame=()))
  index = solver.best_run(runs.objective)
  run = jax.tree.map(lambda a: a[index][None], runs)
  return run._replace(frame=state.frame)


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

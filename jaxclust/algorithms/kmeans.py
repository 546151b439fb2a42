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
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks
from jaxclust.algorithms import minibatch, prediction, runs, seeding, solver
from jaxclust.algorithms.lloyd import pad
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.inputs import (
  METRICS,
  describe,
  on_any_mesh,
  padded_groups,
  place,
)
from jaxclust.rows import Rows

# Steps and mini-batches of a state from `start`.
run = functools.partial(runs.run, max_steps=300, tol=1e-4)
update = functools.partial(runs.update, decay=1.0)

predict, transform, score = (
  prediction.predict,
  prediction.transform,
  prediction.score,
)


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
  check_steps(max_steps, tol)
  rows, starts = _prepare(
    x, sample_weight, block_size, num_clusters, num_restarts, init, metric
  )
  state = begin(key, rows, starts, num_clusters, num_restarts, to_run=True)
  state, _ = runs.run_rows(state, rows, max_steps=max_steps, tol=tol)
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
  some = minibatch.sample(keys[1], rows, size)
  state = begin(keys[0], some, starts, num_clusters, num_restarts)
  state = state._replace(frame=rows.frame)
  state = minibatch.run(keys[2], state, rows, num_batches, batch_size)
  result = best(state)
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
  return rows, centers_in_frame(init, rows)


def centers_in_frame(centers: Any, rows: Rows) -> jax.Array:
  """Given centers `[K, D]` or `[R, K, D]` as `[R, K, D]` in the frame."""
  lib = jnp if checks.is_traced(centers) else np
  centers = lib.asarray(centers).astype(rows.dtype)
  return rows.frame.apply(centers.reshape(-1, *centers.shape[-2:]))


def begin(
  key: jax.Array,
  rows: Rows,
  starts: Any,
  num_clusters: int,
  num_restarts: int,
  **options: Any,
) -> Solution:
  """Seeds R runs on rows in a frame, and assigns these once.

  Args:
    key: a JAX random key.
    rows: N rows.
    starts: of `seeding.SEEDINGS`, or centers `[R, K, D]` in the frame.
    num_clusters: K.
    num_restarts: R, unless centers are given.
    **options: of `runs.begin`.
  """
  size = padded_groups(num_clusters, rows)
  if isinstance(starts, str):
    starts = seeding.seed_centers(
      starts, key, rows, num_clusters, num_restarts, size
    )
  return runs.begin(pad(starts, num_clusters, size), rows, **options)

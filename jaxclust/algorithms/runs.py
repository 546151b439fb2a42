"""Runs of k-means and EM in parts: stepped, and given mini-batches.

Axes: N points, D features, R runs (restarts), B rows of a mini-batch, S steps.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclust import checks, programs
from jaxclust.algorithms import lloyd, seeding, solver, tiles
from jaxclust.algorithms.em import EM, family_of
from jaxclust.algorithms.lloyd import LLOYD, LLOYD_IN_TF32, Clusters
from jaxclust.algorithms.products import EM_BY_PRODUCTS, PRODUCTS
from jaxclust.algorithms.pruning import PRUNED
from jaxclust.algorithms.solver import Algorithm, Solution
from jaxclust.inputs import on_any_mesh, place
from jaxclust.rows import Rows, block_rows


def _plain(params):
  return LLOYD if isinstance(params, Clusters) else EM


def _fastest(params: Any, rows: Rows, precision: str = 'highest') -> Algorithm:
  """The algorithm that makes many steps from params `[R, ...]` on rows."""
  if precision == 'tf32' and tiles.available(rows.dtype):
    return LLOYD_IN_TF32
  if rows.is_streamed:
    return _plain(params)
  if isinstance(params, Clusters):
    # Bounds pay where a CPU reads more than a block.
    block = block_rows(rows.shape[0], rows.shape[1] + params.active.size)
    prunes = jax.default_backend() == 'cpu' and block < rows.shape[0]
    return PRUNED if prunes else LLOYD
  has_products = family_of(params.params) in PRODUCTS
  return EM_BY_PRODUCTS if has_products and not rows.is_small else EM


def run_rows(
  state: Solution, rows: Rows, precision: str = 'highest', **options: Any
) -> tuple[Solution, jax.Array]:
  """`run` on rows in the frame of the state; options as for `solver.run`.

  Where the precision is less than the highest, statistics and objectives of the
  last step are made anew.
  """
  fastest = _fastest(state.params, rows, precision)
  ended, history = solver.run(fastest, state, rows, **options)
  if fastest is LLOYD_IN_TF32:
    last = solver.begin(LLOYD, ended.params, rows)
    ended = ended._replace(stats=last.stats, objective=last.objective)
    lib = jnp if checks.is_traced(ended) else np
    made = lib.asarray(ended.num_steps) - lib.asarray(state.num_steps)
    is_last = np.arange(len(history))[:, None] >= made[None] - 1
    history = lib.where(is_last, lib.asarray(last.objective)[None], history)
  return ended, history


def steps_of(state: Solution, rows: Rows, precision: str = 'highest') -> tuple:
  """The call that `run_rows` makes for runs like these, likewise."""
  return solver.steps_of(_fastest(state.params, rows, precision), state, rows)


def seeded(
  key: jax.Array,
  rows: Rows,
  num_clusters: int,
  num_restarts: int,
  init: Any,
  *calls: tuple,
  precision: str = 'highest',
) -> Solution:
  """Runs of k-means before their first pass.

  XLA compiles their steps, and other calls that follow, as they are seeded.
  Options are those of `kmeans.fit`.
  """
  checks.check_key(key)
  given = not isinstance(init, str)
  num_runs = math.prod(np.shape(init)[:-2]) if given else num_restarts
  blank = lloyd.blank(num_clusters, num_runs, rows)
  steps = steps_of(lloyd.before(blank, rows), rows, precision)
  with programs.compiling(steps, *calls):
    clusters = seeding.seed(key, rows, num_clusters, num_restarts, init)
  return lloyd.before(clusters, rows)


def first_step(state: Solution, rows: Rows, reg: float = 0.0) -> Solution:
  """Runs that `solver.before` has made, after their first pass."""
  options = {'max_steps': 1, 'tol': 0.0, 'reg': reg, 'num_steps': 1}
  return run_rows(state, rows, **options)[0]


@on_any_mesh
def run(
  state: Solution,
  x: ArrayLike,
  num_steps: int | None = None,
  *,
  max_steps: int,
  tol: float,
  reg: float = 1e-6,
  sample_weight: ArrayLike | None = None,
  block_size: int | None = None,
) -> tuple[Solution, jax.Array]:
  """Makes further steps of every run that has not ended.

  Args:
    state: R runs, from `start` or `run`.
    x: `[N, D]` the same points.
    num_steps: most steps of this call; None to go on until all have ended.
    max_steps: most steps of a run over all calls.
    tol: as for `fit`.
    reg: as for `gmm.fit`.
    sample_weight: `[N]` or None.
    block_size: as for `fit`.

  Returns:
    The new state, and the objectives (the inertia, or the negative mean
    log-likelihood) `[S, R]` after each step, in the state's coordinates; a run
    that has ended repeats its last one. S is a multiple of `solver.HISTORY`,
    which it is if JAX traces the call.

  Raises:
    InputError: if shapes do not fit.
  """
  rows = _further(state, x, sample_weight, block_size)
  options = {'max_steps': max_steps, 'tol': tol, 'reg': reg}
  return run_rows(state, rows, num_steps=num_steps, **options)


@on_any_mesh
def update(
  state: Solution,
  x: ArrayLike,
  sample_weight: ArrayLike | None = None,
  *,
  decay: float,
  reg: float = 1e-6,
  block_size: int | None = None,
) -> Solution:
  """Takes one more mini-batch of points into account.

  Assigns the points of the batch, adds their statistics to those so far, and
  updates the parameters from the sum. For data that come in parts: `start` on
  the first batch, `update` with each further one, `best` at the end.

  Args:
    state: R runs, from `start` or `update`.
    x: `[B, D]` a mini-batch, in the units of the others.
    sample_weight: `[B]` or None; all may be 0, which changes no likelihood.
    decay: weight of the points before this batch; 1 forgets nothing.
    reg: as for `gmm.fit`.
    block_size: as for `fit`.

  Returns:
    The new state; its objective is that of the batch before the update. It does
    not converge: batches differ, and the caller decides when to end. A batch
    that is not finite is left out: `stop_reason` is NONFINITE until the next
    one.

  Raises:
    InputError: if shapes do not fit or decay is not from 0 to 1.
  """
  checks.check_number('decay', decay, high=1)
  rows = _further(state, x, sample_weight, block_size, may_be_zero=True)
  return solver.partial_fit(_plain(state.params), state, rows, decay, reg)


def _further(state, x, sample_weight, block_size, **options):
  """Rows of further points, in the frame of a state."""
  checks.check_features(x, state.params.num_features)
  rows = place(x, sample_weight, block_size=block_size, **options)
  return dataclasses.replace(rows, frame=state.frame)

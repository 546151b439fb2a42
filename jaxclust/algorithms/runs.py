"""Runs of k-means and EM in parts: started, stepped, given mini-batches.

Axes: N points, D features, R runs (restarts), B rows of a mini-batch, S steps.
"""

import dataclasses
from typing import Any

import jax

from jaxclust import checks
from jaxclust.algorithms import solver
from jaxclust.algorithms.em import Mixture, em, family_of
from jaxclust.algorithms.lloyd import LLOYD, Clusters
from jaxclust.algorithms.products import PRODUCTS, em_by_products
from jaxclust.algorithms.pruning import PRUNED
from jaxclust.algorithms.solver import Solution
from jaxclust.inputs import on_any_mesh, place
from jaxclust.rows import Rows, block_rows


def _lloyd_for(params, rows):
  """Bounds pay where a CPU reads more than a block."""
  block = block_rows(rows.shape[0], rows.shape[1] + params.active.size)
  prunes = jax.default_backend() == 'cpu' and not rows.is_streamed
  return PRUNED if prunes and block < rows.shape[0] else LLOYD


def _em_for(mixture, rows):
  family = family_of(mixture.params)
  plain = family not in PRODUCTS or rows.is_streamed or rows.is_small
  return em(family) if plain else em_by_products(family)


# Kind of parameters -> (params, rows) -> how to make many steps with them.
_FASTEST = {Clusters: _lloyd_for, Mixture: _em_for}

# Kind of parameters -> params -> the plain algorithm.
_PLAIN = {
  Clusters: lambda params: LLOYD,
  Mixture: lambda mixture: em(family_of(mixture.params)),
}


def _plain_for(params, rows):
  del rows
  return _PLAIN[type(params)](params)


def begin(params: Any, rows: Rows, *, to_run: bool = False) -> Solution:
  """R runs that stand at params `[R, ...]`, on rows in their frame.

  With `to_run`, `run_rows` has to follow: it may have to make the first pass.
  """
  choose = _FASTEST[type(params)] if to_run else _plain_for
  return solver.begin(choose(params, rows), params, rows)


def run_rows(
  state: Solution, rows: Rows, **options: Any
) -> tuple[Solution, jax.Array]:
  """`run` on rows in the frame of the state; options as for `solver.run`."""
  algorithm = _FASTEST[type(state.params)](state.params, rows)
  return solver.run(algorithm, state, rows, **options)


@on_any_mesh
def run(
  state: Solution,
  x: jax.Array,
  num_steps: int | None = None,
  *,
  max_steps: int,
  tol: float,
  reg: float = 1e-6,
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
    reg: as for `gmm.fit`.
    sample_weight: `[N]` or None.
    block_size: as for `fit`.

  Returns:
    The new state, and the objectives (the inertia, or the negative mean
    log-likelihood) after each of the first `solver.HISTORY` steps `[S, R]`, in
    the state's coordinates; a run that has ended repeats its last one.

  Raises:
    InputError: if shapes do not fit.
  """
  rows = _further(state, x, sample_weight, block_size)
  options = {'max_steps': max_steps, 'tol': tol, 'reg': reg}
  return run_rows(state, rows, num_steps=num_steps, **options)


@on_any_mesh
def update(
  state: Solution,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
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
  algorithm = _plain_for(state.params, rows)
  return solver.partial_fit(algorithm, state, rows, decay, reg)


def _further(state, x, sample_weight, block_size, **options):
  """Rows of further points, in the frame of a state."""
  checks.check_features(x, state.params.num_features)
  rows = place(x, sample_weight, block_size=block_size, **options)
  return dataclasses.replace(rows, frame=state.frame)

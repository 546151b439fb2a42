"""One solver for clusterings that are additive statistics and an update.

A step updates the parameters of R runs from their statistics, and sums the
statistics of the new parameters over all rows. A run ends when it has
converged, is out of steps, or is no longer finite: then it keeps its last
finite parameters. Tolerance and limits are data, so that changing them compiles
nothing.

Axes: N rows, R runs (restarts), S steps.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.rows import Rows, compiled, reduce_rows

# Steps of a call whose objectives are returned.
HISTORY = 128


class StopReason(enum.IntEnum):
  """Why an iteration has ended, or that it has not."""

  RUNNING = 0
  CONVERGED = 1
  MAX_STEPS = 2
  NONFINITE = 3


class Options(NamedTuple):
  """What a step depends on beside parameters and rows; all traced."""

  frame: Any  # coordinates of the rows
  tol: Any = 0.0
  reg: Any = 0.0


class Solution(NamedTuple):
  """R runs, in the coordinates of a frame."""

  frame: Any  # coordinates of the parameters
  params: Any  # [R, ...]
  stats: Any  # [R, ...] of these parameters
  objective: jax.Array  # [R] of these parameters, to be minimised
  num_steps: jax.Array  # [R] int32
  stop_reason: jax.Array  # [R] int32, a StopReason


def no_memory(params: Any, rows: Rows) -> tuple:
  """The memory of an algorithm that needs none."""
  del params, rows
  return ()


class Algorithm(NamedTuple):
  """A clustering as functions of R runs together.

  A plain algorithm has `stats` alone. One that saves work by what it remembers
  from step to step has `begin` and `sweep` too, with the same sums.
  """

  stats: Callable  # (prepared, x [B, D], weight [B]) -> additive sums [R, ...]
  update: Callable  # (params, stats, Options) -> params
  objective: Callable  # stats -> [R]
  change: Callable  # (old, new Solution) -> [R], compared with the tolerance
  width: Callable  # params -> numbers of a row in a pass, beside its D
  prepare: Callable = lambda params: params  # once for each pass
  lacks: Callable | None = None  # (stats, params) -> bool [R], whether to mend
  mend: Callable | None = None  # (params, stats, rows) -> params
  rebase: Callable = lambda stats, old, new: stats  # to new params
  begin: Callable = no_memory  # (params, rows) -> memory
  sweep: Callable | None = None  # (params, memory, rows) -> stats, memory
  looks_first: bool = False  # whether a call sweeps before its first update
  together: bool = False  # whether runs share passes on an accelerator


# Functions of an algorithm, each compiled once.
_jitted = functools.cache(jax.jit)


def sum_stats(algorithm: Algorithm, params: Any, rows: Rows) -> Any:
  """The statistics `[R, ...]` of parameters over all rows, in a plain pass."""
  prepared = _jitted(algorithm.prepare)(params)
  width = algorithm.width(params)
  return reduce_rows(algorithm.stats, prepared, rows, width=width)


def begin(algorithm: Algorithm, params: Any, rows: Rows) -> Solution:
  """R runs that stand at params `[R, ...]`.

  Their statistics are left to `run` where that looks first.
  """
  traced = checks.is_traced(params, rows)
  runs = each_run(lambda one: _begin(algorithm, one, rows), params, traced)
  return runs._replace(frame=rows.frame)


@functools.partial(compiled, static=(0,))
def _begin(algorithm, params, rows):
  if algorithm.looks_first:
    like = jax.eval_shape(functools.partial(sum_stats, algorithm), params, rows)
    stats = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
  else:
    stats = sum_stats(algorithm, params, rows)
  objective = algorithm.objective(stats)
  reason = jnp.where(
    jnp.isfinite(objective), StopReason.RUNNING, StopReason.NONFINITE
  )
  steps = jnp.zeros(objective.shape, jnp.int32)
  reason = reason.astype(jnp.int32)
  return Solution((), params, stats, objective, steps, reason)


def run(
  algorithm: Algorithm,
  state: Solution,
  rows: Rows,
  *,
  max_steps: int,
  tol: float,
  reg: float = 0.0,
  num_steps: int | None = None,
) -> tuple[Solution, jax.Array]:
  """Makes further steps of every run that has not ended.

  Args:
    algorithm: what a step is.
    state: R runs.
    rows: in the frame of the state.
    max_steps: most steps of a run over all calls.
    tol: a run has converged when its change is at most this.
    reg: regularisation of the update.
    num_steps: most steps of this call; None to go on until all runs have ended.

  Returns:
    The new state, and the objectives after the first steps `[HISTORY, R]`; a
    run that has ended repeats its last one.
  """
  options = Options(state.frame, tol, reg)
  most = max_steps if num_steps is None else num_steps

  def run_some(runs):
    runs = runs._replace(frame=state.frame)
    runs, history = _iterate(algorithm, runs, rows, options, max_steps, most)
    return runs._replace(frame=()), history

  runs = state._replace(frame=())
  if algorithm.together and jax.default_backend() != 'cpu':
    runs, history = run_some(runs)
  else:
    traced = checks.is_traced(runs, rows)
    runs, history = each_run(run_some, runs, traced)
  return runs._replace(frame=state.frame), history.T


def each_run(fn: Callable, runs: Any, traced: bool) -> Any:
  """Applies `fn` to one run `[1, ...]` of a pytree `[R, ...]` after another.

  One program serves any number of runs, unless JAX traces the call.
  """
  num_runs = len(jax.tree.leaves(runs)[0])
  if num_runs == 1:
    return fn(runs)
  if traced:
    outputs = lax.map(fn, jax.tree.map(lambda a: jnp.asarray(a)[:, None], runs))
    return jax.tree.map(lambda a: a[:, 0], outputs)
  runs = jax.tree.map(np.asarray, runs)
  parts = [
    fn(jax.tree.map(lambda a: a[r : r + 1], runs))  # noqa: B023, used at once
    for r in range(num_runs)
  ]
  return jax.tree.map(lambda *p: np.concatenate(p), *parts)


@functools.partial(compiled, static=(0,))
def _iterate(algorithm, state, rows, options, max_steps, most):
  """Steps runs until all have ended or have made `most` steps here."""
  rows = rows.enter_frame()
  begun = state.num_steps
  memory = algorithm.begin(state.params, rows)
  number = lax.broadcasted_iota(jnp.int32, (len(begun), HISTORY), 1)

  def is_active(state):
    running = state.stop_reason == StopReason.RUNNING
    left = (state.num_steps < max_steps) & (state.num_steps - begun < most)
    return running & left

  def goes_on(carry):
    return jnp.any(is_active(carry[0]))

  def body(carry):
    old, memory, history, first = carry
    active = is_active(old)
    new, memory = _step(algorithm, old, memory, rows, options, first)
    new = choose(active, new, old)
    since = (number >= (old.num_steps - begun)[:, None]) & active[:, None]
    history = jnp.where(since, new.objective[:, None], history)
    return new, memory, history, jnp.zeros_like(first)

  history = jnp.broadcast_to(state.objective[:, None], number.shape)
  first = jnp.asarray(algorithm.looks_first)
  loop = _python_loop if rows.is_streamed else lax.while_loop
  state, _, history, _ = loop(goes_on, body, (state, memory, history, first))
  out = is_running(state) & (state.num_steps >= max_steps)
  reason = jnp.where(out, StopReason.MAX_STEPS, state.stop_reason)
  return state._replace(stop_reason=reason.astype(jnp.int32)), history


def _python_loop(condition, body, carry):
  """`lax.while_loop` for a body that streams rows."""
  while condition(carry):
    carry = body(carry)
  return carry


def is_running(state: Solution) -> jax.Array:
  """Whether each run goes on, bool `[R]`."""
  return state.stop_reason == StopReason.RUNNING


def _step(algorithm, old, memory, rows, options, first):
  """One step of all runs; one that is not finite keeps its parameters.

  A first look takes the statistics of the parameters as they are.
  """
  params = _jitted(algorithm.update)(old.params, old.stats, options)
  params = mend(algorithm, old.stats, params, rows)
  if algorithm.looks_first:
    params = jax.tree.map(
      lambda a, b: jnp.where(first, a, b), old.params, params
    )
  if algorithm.sweep is None:
    stats = sum_stats(algorithm, params, rows)
  else:
    stats, memory = algorithm.sweep(params, memory, rows)
  new = old._replace(
    params=params,
    stats=stats,
    objective=algorithm.objective(stats),
    num_steps=old.num_steps + jnp.where(first, 0, 1),
  )
  change = algorithm.change(old, new)
  reason = jnp.where(
    (change <= options.tol) & ~first, StopReason.CONVERGED, StopReason.RUNNING
  )
  new = new._replace(stop_reason=reason.astype(jnp.int32))
  finite = jnp.isfinite(new.objective) & ~jnp.isnan(change)
  return choose(finite, new, nonfinite(old)), memory


def mend(algorithm: Algorithm, stats: Any, params: Any, rows: Rows) -> Any:
  """The parameters, with a pass that mends them where they need it."""
  if algorithm.lacks is None:
    return params
  lacks = jnp.any(algorithm.lacks(stats, params))
  if rows.is_streamed:
    return algorithm.mend(params, stats, rows) if lacks else params
  return lax.cond(
    lacks, lambda: algorithm.mend(params, stats, rows), lambda: params
  )


def nonfinite(state: Solution) -> Solution:
  """The state of runs that have met a NaN or an infinity."""
  reason = jnp.full_like(state.stop_reason, StopReason.NONFINITE)
  return state._replace(stop_reason=reason)


def choose(mask: jax.Array, new: Solution, old: Solution) -> Solution:
  """Takes each run from new where mask `[R]` says so, else from old."""
  chosen = jax.tree.map(
    lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b),
    new._replace(frame=()),
    old._replace(frame=()),
  )
  return chosen._replace(frame=new.frame)


def partial_fit(
  algorithm: Algorithm, state: Solution, rows: Rows, decay: float, reg: float
) -> Solution:
  """Takes one more mini-batch into account.

  The statistics of the batch are added to those of the past, which weigh
  `decay`, and the parameters are updated from the sum. A batch whose objective
  is not finite is left out, and the runs say so until the next one.

  Args:
    algorithm: what a step is.
    state: R runs.
    rows: the batch, in the frame of the state.
    decay: what statistics before this batch weigh.
    reg: regularisation of the update.

  Returns:
    The new state; its objective is that of the batch before the update.
  """
  update = functools.partial(_partial_fit, algorithm)
  runs = each_run(
    lambda runs: update(runs, state.frame, rows, decay, reg),
    state._replace(frame=()),
    checks.is_traced(state, rows),
  )
  return runs._replace(frame=state.frame)


@functools.partial(jax.jit, static_argnums=0)
def _partial_fit(algorithm, state, frame, rows, decay, reg):
  batch = sum_stats(algorithm, state.params, rows)
  objective = algorithm.objective(batch)
  stats = jax.tree.map(lambda a, b: decay * a + b, state.stats, batch)
  options = Options(frame, reg=reg)
  params = algorithm.update(state.params, stats, options)
  params = mend(algorithm, stats, params, rows)
  some = rows.weight.sum() > 0
  running = jnp.full_like(state.stop_reason, StopReason.RUNNING)
  new = Solution(
    frame=state.frame,
    params=params,
    stats=algorithm.rebase(stats, state.params, params),
    objective=jnp.where(some, objective, state.objective),
    num_steps=state.num_steps + 1,
    stop_reason=running,
  )
  finite = jnp.isfinite(objective) | ~some
  return choose(finite, new, nonfinite(state))


def best_run(objective: jax.Array) -> jax.Array:
  """The index of the smallest finite objective of `[R]`; 0 if none is."""
  lib = jnp if checks.is_traced(objective) else np
  return lib.argmin(lib.where(lib.isfinite(objective), objective, lib.inf))

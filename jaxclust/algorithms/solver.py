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
from jaxclust.programs import compiled
from jaxclust.rows import Rows, reduce_rows

# Steps of one program whose objectives are returned.
HISTORY = 128


class StopReason(enum.IntEnum):
  """Why an iteration has ended, or that it has not."""

  RUNNING = 0
  CONVERGED = 1
  MAX_STEPS = 2
  NONFINITE = 3


class Solution(NamedTuple):
  """R runs, in the coordinates of a frame."""

  frame: Any  # coordinates of the parameters; () within the solver
  params: Any  # [R, ...]
  stats: Any  # [R, ...] of these parameters
  objective: jax.Array  # [R] of these parameters, to be minimised
  num_steps: jax.Array  # [R] int32, -1 before the first pass
  stop_reason: jax.Array  # [R] int32, a StopReason


class Algorithm(NamedTuple):
  """A clustering as functions of R runs together.

  A plain algorithm has no `begin` and `sweep`. One that saves work by what it
  remembers from step to step has both, with the same sums.
  """

  stats: Callable  # (prepared, x [B, D], weight [B]) -> additive sums [R, ...]
  update: Callable  # (params, stats, frame, reg) -> params
  objective: Callable  # stats -> [R]
  change: Callable  # (old, new Solution) -> [R], compared with the tolerance
  width: Callable  # params -> numbers of a row in a pass, beside its D
  prepare: Callable = lambda params: params  # once for each pass
  mend: Callable = lambda params, stats, rows: params  # after an update
  rebase: Callable = lambda stats, old, new: stats  # to new params
  begin: Callable = lambda params, rows: ()  # -> memory
  sweep: Callable | None = None  # (params, memory, rows) -> stats, memory
  together: bool = False  # whether runs share passes on an accelerator


# Functions of an algorithm, each compiled once.
_jitted = functools.cache(jax.jit)


def sum_stats(algorithm: Algorithm, params: Any, rows: Rows) -> Any:
  """The statistics `[R, ...]` of parameters over all rows, in a plain pass."""
  prepared = _jitted(algorithm.prepare)(params)
  width = algorithm.width(params)
  return reduce_rows(algorithm.stats, prepared, rows, width=width)


def before(params: Any, stats: Any, rows: Rows) -> Solution:
  """R runs before their first pass, in the frame of the rows.

  An update makes the parameters to start from out of params and stats
  `[R, ...]`: the first step is number 0, and has nothing to compare with.
  """
  shape = jax.tree.leaves(params)[0].shape[:1]
  return Solution(
    frame=rows.frame,
    params=params,
    stats=stats,
    objective=np.full(shape, np.inf, rows.dtype),
    num_steps=np.full(shape, -1, np.int32),
    stop_reason=np.full(shape, StopReason.RUNNING, np.int32),
  )


def begin(algorithm: Algorithm, params: Any, rows: Rows) -> Solution:
  """R runs that stand at params `[R, ...]`, in the frame of the rows."""
  traced = checks.is_traced(params, rows)
  runs = each_run(lambda one: _begin(algorithm, one, rows), params, traced)
  return runs._replace(frame=rows.frame)


@functools.partial(compiled, static=(0,))
def _begin(algorithm, params, rows):
  stats = sum_stats(algorithm, params, rows)
  objective = algorithm.objective(stats)
  reason = jnp.where(
    jnp.isfinite(objective), StopReason.RUNNING, StopReason.NONFINITE
  )
  steps = jnp.zeros(objective.shape, jnp.int32)
  return Solution((), params, stats, objective, steps, reason.astype(jnp.int32))


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
  """Makes further steps of every run that has not ended; see `runs.run`.

  Rows are in the frame of the state. Returns the new state, and the objectives
  `[S, R]` after its steps, S a multiple of `HISTORY`; a run that has ended
  repeats its last. If JAX traces the call, S is `HISTORY`, and steps after
  these leave none.
  """
  left = max_steps + 1 if num_steps is None else num_steps  # the first is 0
  tol, reg = checks.as_number(tol), checks.as_number(reg)
  traced = checks.is_traced(state, rows)
  together = algorithm.together and jax.default_backend() != 'cpu'

  def advance(runs):
    if not (traced or _any_running(runs)):
      return runs, np.repeat(np.asarray(runs.objective)[:, None], HISTORY, 1)
    most = left if traced else min(left, HISTORY)
    return _iterate(algorithm, runs, rows, tol, reg, max_steps, most)

  runs, parts = state._replace(frame=()), []
  while not parts or (left > 0 and not traced and _any_running(runs)):
    runs, part = advance(runs) if together else each_run(advance, runs, traced)
    parts.append(part)
    left -= HISTORY
  history = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
  return runs._replace(frame=state.frame), history.T


def _any_running(runs):
  return (np.asarray(runs.stop_reason) == StopReason.RUNNING).any()


def steps_of(algorithm: Algorithm, state: Solution, rows: Rows) -> tuple:
  """The call that `run` makes for runs like these, for `programs.compiling`."""
  if not algorithm.together or jax.default_backend() == 'cpu':
    state = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype),
      state._replace(frame=()),
    )
  return _iterate, algorithm, state._replace(frame=()), rows, 0.0, 0.0, 1, 1


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
def _iterate(algorithm, state, rows, tol, reg, max_steps, most):
  """Steps runs until all have ended or have made `most` steps here."""
  step = functools.partial(_step, algorithm, rows.frame, tol, reg)
  rows = rows.enter_frame()
  begun = state.num_steps
  number = lax.broadcasted_iota(jnp.int32, (len(begun), HISTORY), 1)

  def is_active(state):
    left = (state.num_steps < max_steps) & (state.num_steps - begun < most)
    return is_running(state) & left

  def goes_on(carry):
    return jnp.any(is_active(carry[0]))

  def body(carry):
    old, memory, history = carry
    active = is_active(old)
    new, memory = step(old, memory, rows)
    new = choose(active, new, old)
    since = (number >= (old.num_steps - begun)[:, None]) & active[:, None]
    return new, memory, jnp.where(since, new.objective[:, None], history)

  history = jnp.broadcast_to(state.objective[:, None], number.shape)
  carry = state, algorithm.begin(state.params, rows), history
  if rows.is_streamed:
    while goes_on(carry):
      carry = body(carry)
  else:
    carry = lax.while_loop(goes_on, body, carry)
  state, _, history = carry
  out = is_running(state) & (state.num_steps >= max_steps)
  reason = jnp.where(out, StopReason.MAX_STEPS, state.stop_reason)
  return state._replace(stop_reason=reason.astype(jnp.int32)), history


def is_running(state: Solution) -> jax.Array:
  """Whether each run goes on, bool `[R]`."""
  return state.stop_reason == StopReason.RUNNING


def _step(algorithm, frame, tol, reg, old, memory, rows):
  """One step of all runs; one that is not finite keeps its parameters."""
  params = _jitted(algorithm.update)(old.params, old.stats, frame, reg)
  params = algorithm.mend(params, old.stats, rows)
  if algorithm.sweep is None:
    stats = sum_stats(algorithm, params, rows)
  else:
    stats, memory = algorithm.sweep(params, memory, rows)
  objective, steps = algorithm.objective(stats), old.num_steps + 1
  new = Solution((), params, stats, objective, steps, old.stop_reason)
  change = jnp.where(old.num_steps < 0, jnp.inf, algorithm.change(old, new))
  reason = jnp.where(change <= tol, StopReason.CONVERGED, StopReason.RUNNING)
  new = new._replace(stop_reason=reason.astype(jnp.int32))
  finite = jnp.isfinite(objective) & ~jnp.isnan(change)
  return _if_finite(finite, new, old), memory


def _if_finite(finite, new, old):
  """The new runs; those that have met a NaN or an infinity stay and say so."""
  reason = jnp.full_like(old.stop_reason, StopReason.NONFINITE)
  steps = jnp.maximum(old.num_steps, 0)
  kept = old._replace(num_steps=steps, stop_reason=reason)
  return choose(finite, new, kept)


def choose(mask, new, old):
  """Takes each run from new where mask `[R]` says so, else from old."""
  return jax.tree.map(lambda a, b: jnp.where(along(mask, a), a, b), new, old)


def along(values: jax.Array, like: jax.Array) -> jax.Array:
  """Values `[K]` in a shape that broadcasts along the first axis of `like`."""
  return values.reshape(-1, *[1] * (like.ndim - 1))


def partial_fit(
  algorithm: Algorithm, state: Solution, rows: Rows, decay: float, reg: float
) -> Solution:
  """Takes one more mini-batch of rows, in the frame of the state, into account.

  The statistics of the batch are added to those of the past, which weigh
  `decay`, and the parameters are updated from the sum; see `runs.update`.
  """
  decay, reg = checks.as_number(decay), checks.as_number(reg)
  runs = each_run(
    lambda runs: _partial_fit(algorithm, runs, rows, decay, reg),
    state._replace(frame=()),
    checks.is_traced(state, rows),
  )
  return runs._replace(frame=state.frame)


@functools.partial(jax.jit, static_argnums=0)
def _partial_fit(algorithm, old, rows, decay, reg):
  batch = sum_stats(algorithm, old.params, rows)
  stats = jax.tree.map(lambda a, b: decay * a + b, old.stats, batch)
  params = algorithm.update(old.params, stats, rows.frame, reg)
  params = algorithm.mend(params, stats, rows)
  objective = algorithm.objective(batch)
  some = rows.weight.sum() > 0
  new = Solution(
    frame=(),
    params=params,
    stats=algorithm.rebase(stats, old.params, params),
    objective=jnp.where(some, objective, old.objective),
    num_steps=old.num_steps + 1,
    stop_reason=jnp.full_like(old.stop_reason, StopReason.RUNNING),
  )
  return _if_finite(jnp.isfinite(objective) | ~some, new, old)


def best_run(objective: jax.Array) -> jax.Array:
  """The index of the smallest finite objective of `[R]`; 0 if none is."""
  lib = jnp if checks.is_traced(objective) else np
  return lib.argmin(lib.where(lib.isfinite(objective), objective, lib.inf))


def history_of_best(
  begun: Solution, ended: Solution, history: jax.Array
) -> jax.Array:
  """Objectives `[S]` of the best run, that of its start first.

  Args:
    begun: R runs that `run` was given.
    ended: what it returned of them.
    history: and the objectives `[S, R]`.
  """
  lib = jnp if checks.is_traced(ended, history) else np
  best = best_run(lib.asarray(ended.objective))
  start, steps, history = (
    lib.asarray(a)[..., best]
    for a in (begun.objective, begun.num_steps, history)
  )
  from_start = lib.concatenate([start[None], history[:-1]])
  return lib.where(steps < 0, history, from_start)

"""k-means on small random mini-batches; see `kmeans.fit_minibatch` for its use.

Axes: N points, R runs (restarts), B rows of a mini-batch.

Reference:
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
from jaxclust.algorithms import solver
from jaxclust.algorithms.lloyd import LLOYD
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.programs import compiled
from jaxclust.rows import Rows, cumulate, take_rows


class Ends(NamedTuple):
  """When a run ends."""

  num_batches: Any
  tol: Any  # on the squared shift of all centers by a batch; 0: none
  patience: Any  # batches in a row whose smoothed inertia is no less


def sample_size(given: int | None, batch_size: int, num_clusters: int) -> int:
  """Rows from which starts are drawn, once the options are checked."""
  checks.check_count('num_clusters', num_clusters)
  default = max(
    3 * checks.check_count('batch_size', batch_size), 10 * num_clusters
  )
  if given is None:
    return default
  return checks.check_count('sample_size', given, num_clusters)


def ends(num_batches: int, tol: float, patience: int | None) -> Ends:
  """Checked ends of runs; arguments as for `kmeans.fit_minibatch`."""
  most = np.iinfo(np.int32).max
  checks.check_count('num_batches', num_batches)
  checks.check_number('tol', tol)
  if patience is None:
    patience = most
  checks.check_count('patience', patience)
  return Ends(
    min(num_batches, most), checks.as_number(tol), min(patience, most)
  )


class _Progress(NamedTuple):
  """The smoothed inertia of the batches of R runs."""

  smooth: jax.Array  # [R]
  least: jax.Array  # [R]
  num_stale: jax.Array  # [R] int32, batches since the least


def run(
  key: jax.Array, state: Solution, rows: Rows, ends: Ends, batch_size: int
) -> Solution:
  """Updates R runs with mini-batches drawn in proportion to the weights, then
  assigns all points.

  Runs see the same mini-batches, with replacement, of `batch_size` rows.
  """

  def update(runs):
    return _update(key, runs, rows, ends, batch_size)

  runs = state._replace(frame=())
  if rows.is_streamed:  # each batch is read once for all runs
    runs = update(runs)
  else:
    runs = solver.each_run(update, runs, checks.is_traced(key, state, rows))
  new = solver.begin(LLOYD, runs.params, rows)
  lib = jnp if checks.is_traced(new) else np
  reason = lib.where(
    _has_converged(runs), StopReason.CONVERGED, StopReason.MAX_STEPS
  )
  reason = lib.where(solver.is_running(new), reason, new.stop_reason)
  reason = reason.astype(np.int32)
  return new._replace(num_steps=runs.num_steps, stop_reason=reason)


def _has_converged(runs):
  return runs.stop_reason == StopReason.CONVERGED


@functools.partial(compiled, static=(4,))
def _update(key, runs, rows, ends, batch_size):
  mass = jnp.asarray(cumulate(rows, rows.weight))
  share = jnp.minimum(2 * batch_size / (rows.shape[0] - rows.num_padded + 1), 1)

  def goes_on(carry):
    step, runs, _ = carry
    return (step < ends.num_batches) & ~_has_converged(runs).all()

  def body(carry):
    step, old, progress = carry
    place = _draw_places(jax.random.fold_in(key, step), mass, batch_size)
    weight = jnp.ones(batch_size, mass.dtype)
    batch = Rows(take_rows(rows, place), weight, rows.frame)
    new = solver.partial_fit(LLOYD, old, batch, 1.0, 0.0)
    return step + 1, *_judge(step, old, new, progress, ends, share)

  progress = _Progress(
    smooth=jnp.zeros_like(runs.objective),
    least=jnp.full_like(runs.objective, jnp.inf),
    num_stale=jnp.zeros_like(runs.num_steps),
  )
  carry = jnp.int32(0), runs, progress
  if not rows.is_streamed:
    return lax.while_loop(goes_on, body, carry)[1]
  while goes_on(carry):
    carry = body(carry)
  return carry[1]


@jax.jit
def _judge(step, old, new, progress, ends, share):
  """The new runs, marked where a batch has ended them, and their progress.

  A batch has a share in the smoothed inertia. The first one, which is assigned
  to starts that no batch has moved, ends nothing, and the second begins anew.
  """
  smooth = progress.smooth + share * (new.objective - progress.smooth)
  smooth = jnp.where(step < 2, new.objective, smooth)
  is_stale = (smooth >= progress.least) & (step > 1)
  num_stale = jnp.where(is_stale, progress.num_stale + 1, 0)
  shift = jnp.square(new.params.centers - old.params.centers).sum(axis=(1, 2))
  ends_now = (shift <= ends.tol) & (ends.tol > 0) & (step > 0)
  ends_now |= num_stale >= ends.patience
  reason = jnp.where(ends_now, StopReason.CONVERGED, new.stop_reason)
  new = new._replace(stop_reason=reason.astype(jnp.int32))
  least = jnp.where(step < 2, smooth, jnp.minimum(smooth, progress.least))
  new = solver.choose(_has_converged(old), old, new)
  return new, _Progress(smooth, least, num_stale)


@functools.partial(jax.jit, static_argnames='count')
def _draw_places(key, mass, count):
  draws = jax.random.uniform(key, (count,), mass.dtype, 0, mass[-1])
  places = jnp.searchsorted(mass, draws, side='right')
  return jnp.minimum(places, jnp.argmax(mass)).astype(jnp.int32)

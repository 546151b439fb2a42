"""Steps of k-means on random mini-batches; see `kmeans.fit_minibatch`.

Axes: N points, D features, K clusters, R runs, B rows of a mini-batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms import seeding, solver
from jaxclust.algorithms.lloyd import LLOYD
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.rows import Rows, cumulate, take_rows


def sample(key: jax.Array, rows: Rows, size: int) -> Rows:
  """Up to so many rows that stand for all, in their frame."""
  traced = checks.is_traced(rows.weight)  # else padding is known
  num_points = rows.shape[0] if traced else int((rows.weight > 0).sum())
  if size >= num_points and not rows.is_streamed:
    return rows
  seed = jax.random.bits(key, dtype=jnp.uint32)
  return seeding.sample_rows(seed, rows, min(size, num_points))


def run(
  key: jax.Array,
  state: Solution,
  rows: Rows,
  num_batches: int,
  batch_size: int,
) -> Solution:
  """Updates R runs with mini-batches drawn in proportion to the weights, then
  assigns all points."""
  if rows.is_streamed:
    state = _update_streamed(key, state, rows, num_batches, batch_size)
  else:
    runs = solver.each_run(
      lambda run: _update(key, run, state.frame, rows, num_batches, batch_size),
      state._replace(frame=()),
      checks.is_traced(key, state, rows),
    )
    state = runs._replace(frame=state.frame)
  new = solver.begin(LLOYD, state.params, rows)
  lib = jnp if checks.is_traced(new) else np
  reason = lib.where(
    solver.is_running(new), StopReason.MAX_STEPS, new.stop_reason
  )
  return new._replace(num_steps=state.num_steps, stop_reason=reason)


def _update_streamed(key, state, rows, num_batches, batch_size):
  mass = jnp.asarray(cumulate(rows, rows.weight))
  for step in range(num_batches):
    state = _update_at(step, key, state, rows, mass, batch_size)
  return state


@functools.partial(jax.jit, static_argnames='batch_size')
def _update(key, state, frame, rows, num_batches, batch_size):
  state = state._replace(frame=frame)
  mass = cumulate(rows, rows.weight)

  def body(step, state):
    return _update_at(step, key, state, rows, mass, batch_size)

  return lax.fori_loop(0, num_batches, body, state)._replace(frame=())


def _update_at(step, key, state, rows, mass, batch_size):
  """The state after one mini-batch; `mass` `[N]` are cumulative weights."""
  place = _draw_places(jax.random.fold_in(key, step), mass, batch_size)
  x = take_rows(rows, place)
  batch = Rows(x, jnp.ones(batch_size, mass.dtype), state.frame)
  return solver.partial_fit(LLOYD, state, batch, 1.0, 0.0)


@functools.partial(jax.jit, static_argnames='count')
def _draw_places(key, mass, count):
  draws = jax.random.uniform(key, (count,), mass.dtype, 0, mass[-1])
  places = jnp.searchsorted(mass, draws, side='right')
  return jnp.minimum(places, jnp.argmax(mass)).astype(jnp.int32)

"""The solver, on an algorithm of one parameter whose steps are known."""

import logging
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust.algorithms import solver
from jaxclust.algorithms.solver import StopReason
from jaxclust.frames import dot
from jaxclust.rows import Rows, map_rows

X = np.array([[1.0], [2.0], [6.0]], np.float32)  # of mean 3
SPREAD = 14 / 3  # the mean squared distance from it


class Mean(NamedTuple):
  """A number that moves halfway to the mean of the rows in each step."""

  value: jax.Array  # [R]


class About(NamedTuple):
  """Sums about the value of each run, `[R]`."""

  weight: jax.Array
  first: jax.Array
  second: jax.Array


def stats(params, x, weight):
  difference = x[None, :, 0] - params.value[:, None]
  return About(
    jnp.broadcast_to(weight.sum(), params.value.shape),
    dot(difference, weight),
    dot(jnp.square(difference), weight),
  )


def update(params, stats, frame, reg):
  del frame, reg
  return Mean(params.value + stats.first / (2 * stats.weight))


def rebase(stats, old, new):
  shift = new.value - old.value
  return stats._replace(
    first=stats.first - stats.weight * shift,
    second=stats.second - shift * (2 * stats.first - stats.weight * shift),
  )


HALFWAY = solver.Algorithm(
  stats=stats,
  update=update,
  objective=lambda stats: stats.second / stats.weight,
  change=lambda old, new: jnp.abs(new.params.value - old.params.value),
  width=lambda params: params.value.size,
  rebase=rebase,
)


def rows_of(x, weight=None):
  weight = np.ones(len(x), np.float32) if weight is None else weight
  return Rows(jnp.asarray(x), jnp.asarray(weight, jnp.float32))


ROWS = rows_of(X)
BROKEN = rows_of(np.where(X == 6, np.nan, X))


def start(*values, rows=ROWS, algorithm=HALFWAY):
  return solver.begin(algorithm, Mean(np.array(values, np.float32)), rows)


def run(state, rows=ROWS, algorithm=HALFWAY, **options):
  options = {'max_steps': 300, 'tol': 1e-3} | options
  return solver.run(algorithm, state, rows, **options)


def test_a_start_has_the_objective_of_its_parameters():
  state = start(3.0, 11.0)
  np.testing.assert_allclose(state.objective, [SPREAD, SPREAD + 64], rtol=1e-6)
  np.testing.assert_array_equal(state.num_steps, [0, 0])
  np.testing.assert_array_equal(state.stop_reason, [StopReason.RUNNING] * 2)


def test_a_run_ends_with_the_first_change_within_the_tolerance():
  # From 11 a step s moves by 8 / 2**s: the fifth is the first of at most 0.25.
  state, history = run(start(11.0), tol=0.25)
  assert state.stop_reason[0] == StopReason.CONVERGED
  assert state.num_steps[0] == 5
  np.testing.assert_allclose(state.params.value, [3.25], rtol=1e-6)
  chex.assert_shape(history, (solver.HISTORY, 1))
  distances = 8 / 2.0 ** np.minimum(np.arange(1, 129), 5)
  np.testing.assert_allclose(history[:, 0], SPREAD + distances**2, rtol=1e-5)
  np.testing.assert_array_equal(history[-1], state.objective)


def test_a_run_out_of_steps_says_so():
  state, _ = run(start(11.0), max_steps=2)
  assert state.stop_reason[0] == StopReason.MAX_STEPS
  assert state.num_steps[0] == 2
  np.testing.assert_allclose(state.params.value, [5], rtol=1e-6)


def test_runs_end_apart():
  starts = 3.0, 11.0, 1000.0
  state, history = run(start(*starts), max_steps=12, tol=1e-2)
  alone = [run(start(s), max_steps=12, tol=1e-2) for s in starts]
  for r, (one, its_history) in enumerate(alone):
    chex.assert_trees_all_equal(
      jax.tree.map(lambda a, r=r: a[r], state),
      jax.tree.map(lambda a: a[0], one),
    )
    np.testing.assert_array_equal(history[:, r], its_history[:, 0])
  np.testing.assert_array_equal(state.num_steps, [1, 10, 12])
  converged, out = StopReason.CONVERGED, StopReason.MAX_STEPS
  np.testing.assert_array_equal(state.stop_reason, [converged, converged, out])


def test_a_run_in_parts_is_a_whole_run():
  whole, _ = run(start(11.0, 500.0), max_steps=15)
  state, parts = start(11.0, 500.0), 0
  while solver.is_running(state).any():
    state, _ = run(state, max_steps=15, num_steps=4)
    parts += 1
  assert parts == 4
  chex.assert_trees_all_equal(state, whole)


def test_a_call_makes_no_more_steps_than_it_is_told():
  state, history = run(start(11.0), num_steps=2)
  assert state.stop_reason[0] == StopReason.RUNNING
  assert state.num_steps[0] == 2
  assert len(np.unique(history)) == 2
  ended, _ = run(state)
  again, history = run(ended)
  chex.assert_trees_all_equal(again, ended)
  np.testing.assert_array_equal(history, ended.objective[0])


def test_nan_never_converges():
  state = start(11.0, rows=BROKEN)
  assert state.stop_reason[0] == StopReason.NONFINITE
  state, _ = run(state, BROKEN, tol=np.inf)
  assert state.stop_reason[0] == StopReason.NONFINITE
  assert state.num_steps[0] == 0


def test_a_run_that_meets_nan_keeps_its_last_finite_parameters():
  state, _ = run(start(11.0, 3.5), num_steps=2)
  broken, history = run(state, BROKEN)
  np.testing.assert_array_equal(broken.stop_reason, [StopReason.NONFINITE] * 2)
  same = {'stop_reason': state.stop_reason}
  chex.assert_trees_all_equal(broken._replace(**same), state)
  np.testing.assert_array_equal(history, np.tile(state.objective, (128, 1)))


def test_a_run_that_meets_nan_leaves_the_others_alone():
  def poisoned(params, stats, frame, reg):
    moved = update(params, stats, frame, reg).value
    return Mean(jnp.where(jnp.abs(moved) > 100, jnp.nan, moved))

  algorithm = HALFWAY._replace(update=poisoned)
  state = start(3.5, 1000.0, algorithm=algorithm)
  state, _ = run(state, algorithm=algorithm)
  expected = [StopReason.CONVERGED, StopReason.NONFINITE]
  np.testing.assert_array_equal(state.stop_reason, expected)
  assert state.params.value[1] == 1000


def test_runs_one_by_one_and_under_jit_agree():
  def solve(values, x):
    rows = Rows(x, jnp.ones(len(x)))
    return run(solver.begin(HALFWAY, Mean(values), rows), rows)

  values, x = jnp.array([11.0, 3.5, 500.0]), jnp.asarray(X)
  plain, traced = solve(values, x), jax.jit(solve)(values, x)
  chex.assert_trees_all_close(plain, traced, rtol=1e-6)
  chex.assert_trees_all_equal_shapes_and_dtypes(plain, traced)


def test_each_run_sees_one_run_at_a_time():
  shapes = []

  def double(runs):
    shapes.append(runs.value.shape)
    return Mean(2 * runs.value)

  runs = Mean(np.arange(3.0))
  for traced in (False, True):
    found = solver.each_run(double, runs, traced)
    np.testing.assert_array_equal(found.value, [0, 2, 4])
  assert set(shapes) == {(1,)}


def test_runs_together_are_runs_in_turn(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  together = HALFWAY._replace(together=True)
  states = [run(start(11.0, 3.5), algorithm=a) for a in (HALFWAY, together)]
  chex.assert_trees_all_close(*states, rtol=1e-6)


def test_rows_of_a_stream_are_rows_of_a_device():
  streamed = Rows(X, np.ones(3, np.float32), block_size=2)
  chex.assert_trees_all_close(
    run(start(11.0, 3.5, rows=streamed), streamed),
    run(start(11.0, 3.5)),
    rtol=1e-6,
  )


def test_other_tolerances_limits_and_numbers_of_runs_compile_nothing(caplog):
  run(start(11.0, 3.5))
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    run(start(11.0, 3.5, 9.0), tol=1e-2, max_steps=99, reg=0.5)
    run(start(4.0, 3.5), num_steps=7)
  assert not [text for text in caplog.messages if 'XLA compilation' in text]


# Algorithms with more functions


def jump(params, stats, rows):
  """Moves what is far from the rows to the largest row."""
  largest = map_rows(lambda _, x: x[:, 0], (), rows).max()
  far = stats.second > 100 * stats.weight
  return Mean(jnp.where(far, largest, params.value))


JUMPING = HALFWAY._replace(mend=jump)


@pytest.mark.parametrize('streamed', [False, True])
def test_what_an_update_leaves_far_is_mended(streamed):
  rows = Rows(X, np.ones(3, np.float32)) if streamed else ROWS
  state = start(5.0, 500.0, rows=rows, algorithm=JUMPING)
  state, _ = run(state, rows, JUMPING, num_steps=1)
  np.testing.assert_allclose(state.params.value, [4, 6], rtol=1e-6)
  np.testing.assert_allclose(
    state.objective, [SPREAD + 1, SPREAD + 9], rtol=1e-6
  )


def sweep(params, memory, rows):
  return solver.sum_stats(HALFWAY, params, rows), memory + 1


def test_what_an_algorithm_remembers_goes_from_step_to_step():
  def slower(params, memory, rows):
    found, memory = sweep(params, memory, rows)
    return found._replace(second=found.second + memory), memory

  algorithm = HALFWAY._replace(
    begin=lambda params, rows: jnp.zeros(params.value.shape), sweep=slower
  )
  state, history = run(start(3.0), algorithm=algorithm, tol=-1.0, max_steps=100)
  objectives = SPREAD + np.arange(1, 101) / 3
  np.testing.assert_allclose(state.objective, objectives[-1:], rtol=1e-6)
  np.testing.assert_allclose(history[:100, 0], objectives, rtol=1e-6)


def test_a_history_has_every_step_of_every_run():
  """An algorithm that counts down to 0."""
  algorithm = HALFWAY._replace(
    update=lambda params, *rest: Mean(params.value - 1),
    change=lambda old, new: new.params.value,
  )
  options = {'algorithm': algorithm, 'tol': 0.5}
  state, history = run(start(200.0, 10.0), **options)
  np.testing.assert_array_equal(state.num_steps, [200, 10])
  chex.assert_shape(history, (2 * solver.HISTORY, 2))
  for run_number, steps in enumerate((200, 10)):
    values = np.maximum(steps - 1 - np.arange(256), 0)
    expected = SPREAD + (values - 3) ** 2
    np.testing.assert_allclose(history[:, run_number], expected, rtol=1e-5)
  _, few = run(start(200.0), num_steps=130, **options)
  np.testing.assert_array_equal(few[:130, 0], history[:130, 0])
  assert len(np.unique(few[129:])) == 1


# Mini-batches


def partial_fit(state, rows, decay=1.0):
  return solver.partial_fit(HALFWAY, state, rows, decay, 0.0)


@pytest.mark.parametrize('decay', [0.0, 0.5, 1.0])
def test_the_past_weighs_what_the_decay_says(decay):
  state = start(3.0)  # three rows of mean 3
  new = partial_fit(state, rows_of(np.full((2, 1), 11.0, np.float32)), decay)
  weight = 3 * decay + 2
  mean = (3 * decay * 3 + 2 * 11) / weight
  value = (3 + mean) / 2
  np.testing.assert_allclose(new.params.value, [value], rtol=1e-6)
  second = decay * 3 * (SPREAD + (3 - value) ** 2) + 2 * (11 - value) ** 2
  expected = About(weight, weight * (mean - value), second)
  chex.assert_trees_all_close(
    new.stats,
    jax.tree.map(lambda a: np.full(1, a, np.float32), expected),
    rtol=1e-5,
  )
  np.testing.assert_allclose(new.objective, [64], rtol=1e-6)
  assert new.num_steps[0] == 1
  assert new.stop_reason[0] == StopReason.RUNNING


def test_a_batch_that_is_not_finite_is_left_out_until_the_next():
  state = start(11.0, 3.5)
  broken = partial_fit(state, BROKEN)
  np.testing.assert_array_equal(broken.stop_reason, [StopReason.NONFINITE] * 2)
  chex.assert_trees_all_equal(
    broken._replace(stop_reason=state.stop_reason), state
  )
  chex.assert_trees_all_equal(
    partial_fit(broken, ROWS), partial_fit(state, ROWS)
  )
  assert solver.is_running(partial_fit(broken, ROWS)).all()


def test_a_batch_of_padding_keeps_the_objective():
  state = start(11.0)
  new = partial_fit(state, rows_of(X, np.zeros(3)))
  np.testing.assert_array_equal(new.objective, state.objective)
  assert new.stop_reason[0] == StopReason.RUNNING


def test_a_batch_mends_what_it_leaves_far():
  state = start(5.0, 500.0)
  new = solver.partial_fit(JUMPING, state, ROWS, 0.0, 0.0)
  np.testing.assert_allclose(new.params.value, [4, 6], rtol=1e-6)


# The best of the runs


@pytest.mark.parametrize(
  ('objective', 'best'),
  [([3, 1, 2], 1), ([np.nan, np.inf, 7], 2), ([np.nan, np.inf], 0)],
)
def test_the_best_run_is_the_least_finite_one(objective, best):
  assert solver.best_run(np.array(objective, np.float32)) == best
  assert jax.jit(solver.best_run)(jnp.array(objective, jnp.float32)) == best

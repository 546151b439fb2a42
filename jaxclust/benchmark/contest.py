"""A contest: contestants that take turns, and the limits of the machine."""

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust.frames import dot

OURS = 'jaxclust'

# Seconds between contestants, until the threads of the last one are asleep.
_PAUSE = 0.2


class MismatchError(RuntimeError):
  """Contestants did not do the same, so that none of their times counts."""


class Task(NamedTuple):
  """Work to be timed."""

  run: Callable  # does the work -> what computes its objective, untimed
  num_parts: int = 1  # equal parts, by which the time is divided


class Contest(NamedTuple):
  """A row: the tasks of the contestants, and what the plain algorithm costs."""

  name: str
  tasks: dict[str, Task]
  tolerance: float  # relative, of the objectives
  operations: float  # of the plain algorithm, for a part of a task
  numbers: float  # that it reads


class Group(NamedTuple):
  """Contests that share their options."""

  check: Callable  # (shape of images, **options), raises an InputError
  num_rows: Callable  # (**options) -> how many contests there are
  contests: Callable  # (key, images, **options) -> an iterator of contests


class Limits(NamedTuple):
  """What the machine can do."""

  operations_per_second: float  # of a float32 matrix product
  bytes_per_second: float  # read and written, of a copy


def measure_limits(size: int) -> Limits:
  """Times products of matrices `[size, size]`, and copies of 8 such."""
  matrix = jnp.ones((size, size), jnp.float32) / size
  block = jnp.ones((8, size, size), jnp.float32)

  def least(fn, argument):
    call = jax.jit(fn)
    seconds = [
      _seconds(lambda: jax.block_until_ready(call(argument))) for _ in range(10)
    ]
    return min(seconds[1:])

  product = least(lambda a: dot(a, a), matrix)
  copy = least(lambda a: -a, block)
  return Limits(2 * size**3 / product, 2 * block.nbytes / copy)


def measure(contest: Contest, rounds: int, limits: Limits) -> dict:
  """Lets the contestants take turns, after a warm-up of each.

  Returns:
    A record as for `benchmark.run`.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  objectives = _warm_up(contest)
  seconds = {name: [] for name in contest.tasks}
  for _ in range(rounds):
    for name, task in contest.tasks.items():
      time.sleep(_PAUSE)
      seconds[name].append(_seconds(task.run) / task.num_parts)
  median = {name: float(np.median(s)) for name, s in seconds.items()}
  limit = max(
    contest.operations / limits.operations_per_second,
    4 * contest.numbers / limits.bytes_per_second,
  )
  ours = seconds[OURS]
  return {
    'name': contest.name,
    'seconds': seconds,
    'median': median,
    'ratio': {
      name: _ratio(s, ours) for name, s in seconds.items() if name != OURS
    },
    'objective': objectives,
    'limit': limit,
    'share_of_limit': limit / median[OURS],
  }


def _warm_up(contest):
  """The objective of each contestant."""
  objectives = {}
  for name, task in contest.tasks.items():
    objectives[name] = task.run()()
    gap = abs(objectives[name] - objectives[OURS])
    if not gap <= contest.tolerance * abs(objectives[OURS]):
      raise MismatchError(
        f'{contest.name}: {name} ended at {objectives[name]:.8g}, '
        f'{OURS} at {objectives[OURS]:.8g}: they did not do the same'
      )
  return objectives


def _seconds(run):
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def _ratio(theirs, ours):
  rounds = np.divide(theirs, ours)
  return {
    'median': float(np.median(theirs) / np.median(ours)),
    'least': float(rounds.min()),
    'largest': float(rounds.max()),
  }


def quietly(run: Callable) -> Callable:
  """Runs without warnings that steps have run out, as the contest asks."""

  def quiet():
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return run()

  return quiet

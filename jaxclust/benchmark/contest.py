"""A contest: contestants that take turns, and the limits of the machine.

Axes: R restarts, K clusters, D features.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust.algorithms import kmeans
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
  seconds: Callable | None = None  # what the last run took, if it has a clock


class Contest(NamedTuple):
  """A row: the tasks of the contestants, and what the plain algorithm costs."""

  name: str
  tasks: dict[str, Task]
  tolerance: float  # relative, of the objectives
  operations: float  # of the plain algorithm, for a part of a task
  numbers: float  # that it reads
  size: dict[str, int] | None = None  # 'points', 'features' and 'clusters'


def mean_inertia(centers: Any, x: Any) -> Callable:
  """The objective of centers `[R, K, D]`, which a task has found."""
  return lambda: float(np.mean([-kmeans.score(c, x) for c in centers]))


def measure_limits(size: int) -> dict[str, float]:
  """Times float32 products of `[size, size]`, and copies of 8 such matrices.

  Returns:
    operations_per_second, and bytes_per_second, those read and those written.
  """
  matrix = jnp.ones((size, size), jnp.float32) / size
  block = jnp.ones((8, size, size), jnp.float32)

  def least(fn, argument):
    call = jax.jit(fn)
    seconds = [
      _seconds(lambda: jax.block_until_ready(call(argument))) for _ in range(10)
    ]
    return min(seconds[1:])

  return {
    'operations_per_second': 2 * size**3 / least(lambda a: dot(a, a), matrix),
    'bytes_per_second': 2 * block.nbytes / least(lambda a: -a, block),
  }


def measure(
  contest: Contest, rounds: int, patience: float, limits: dict[str, float]
) -> dict:
  """Lets the contestants take turns, after a warm-up of each.

  Args:
    contest: whose tasks are timed.
    rounds: most turns of each contestant, of which there is at least one.
    patience: seconds after which no further round begins.
    limits: of `measure_limits`.

  Returns:
    name, size, seconds of every turn by contestant, medians, ratios of a peer's
    seconds to ours (median, least and largest of the rounds), objectives, the
    limit in seconds, and its share of our time.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  seconds = {name: [] for name in contest.tasks}
  with warnings.catch_warnings():
    # Fits warn when their steps have run out, as a contest asks for.
    warnings.simplefilter('ignore')
    objectives = _warm_up(contest)
    begun = time.perf_counter()
    for number in range(rounds):
      if number and time.perf_counter() - begun > patience:
        break
      for name, task in contest.tasks.items():
        time.sleep(_PAUSE)
        elapsed = _seconds(task.run)
        elapsed = task.seconds() if task.seconds else elapsed
        seconds[name].append(elapsed / task.num_parts)
  median = {name: float(np.median(s)) for name, s in seconds.items()}
  limit = max(
    contest.operations / limits['operations_per_second'],
    4 * contest.numbers / limits['bytes_per_second'],
  )
  return {
    'name': contest.name,
    'size': contest.size,
    'seconds': seconds,
    'median': median,
    'ratio': {n: _ratio(seconds, n) for n in seconds if n != OURS},
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


def _ratio(seconds, peer):
  theirs, ours = seconds[peer], seconds[OURS]
  rounds = np.divide(theirs, ours)
  return {
    'median': float(np.median(theirs) / np.median(ours)),
    'least': float(rounds.min()),
    'largest': float(rounds.max()),
  }

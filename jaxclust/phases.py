"""Phases of a run that can be stopped and resumed: training, clustering.

Progress, log and checkpoints have their place between bounded device calls; a
phase goes on from what an earlier process of the same run has saved.

Axes: R runs (one for each seed) or restarts, N points, S steps, D features,
K clusters.
"""

import pathlib
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import (
  checkpoints,
  plans,
  processes,
  signals,
  training,
  workdir,
)
from jaxclust.algorithms.assignment import ALGORITHMS
from jaxclust.algorithms.solver import HISTORY, StopReason
from jaxclust.errors import RunError
from jaxclust.report import console

# Number that the key of a seed's clusters is folded with, beside `plans`'.
CLUSTERS = 2

_SECONDS_BETWEEN_CHECKPOINTS = 10

# Maximum steps of a clusterer per device call, which keeps progress visible.
_MOST_STEPS = 100

# Options of a clusterer that tell when it ends.
_ENDS = ('max_steps', 'tol')


def draw_keys(seeds: Sequence[int]) -> jax.Array:
  """A random key for each seed `[R]`."""
  return jnp.stack([jax.random.key(seed) for seed in seeds])


def train(
  path: pathlib.Path,
  phase: str,
  plan: plans.Plan,
  seeds: Sequence[int],
  previous: Any = None,
) -> tuple[Any, list[dict]]:
  """Trains the networks of R seeds; `previous` has the parameters `[R, ...]` of
  the stage before, and a phase is named after its stage.

  Returns:
    The parameters `[R, ...]`, and what was logged of the epoch they are from.

  Raises:
    RunError: if a loss or a parameter is no longer finite.
  """
  course = training.blank(plan, previous)
  restored = _restored(path, phase, course)
  begun, course = restored or (0, training.start(plan, course))
  workdir.rewind_log(path, 'epoch', begun // plan.steps_per_epoch, phase=phase)
  saver = _Saver(path, phase, begun)
  with (
    signals.postponed(),
    console.progress(phase, plan.options['num_epochs']) as show,
  ):
    try:
      for now in training.run(plan, course):
        course = now.course
        if now.losses is not None:
          for run in np.flatnonzero(now.active):
            losses = {name: float(v[run]) for name, v in now.losses.items()}
            record = {'seed': seeds[run], 'epoch': now.epoch, **losses}
            workdir.log(path, phase=phase, **record, seconds=now.seconds)
          means = {k: v[now.active].mean() for k, v in now.losses.items()}
          show(now.epoch, _text(means | {'seconds': now.seconds}))
        saver.save(now.step, course)
    except RunError as error:
      kept = 'none was saved'
      if saver.last:
        kept = f'the checkpoint of step {saver.last} is kept'
      raise RunError(f'{error} ({kept})') from error
    last = int(jax.device_get(course.state.step)[0])
    saver.save(last, course, final=True)
  records = []
  for seed, epoch in zip(
    seeds, training.final_epochs(plan, course), strict=True
  ):
    found = workdir.read_log(path, phase=phase, seed=seed, epoch=epoch)
    records += found[:1] or [{'epoch': epoch}]  # a user may have lost the file
  params = processes.same(training.final_params(plan, course))
  for message in training.complaints(plan, params):
    warnings.warn(message, stacklevel=2)
  return params, records


def _restored(path, phase, like):
  """The step and the state of a checkpoint, which process 0 reads, or None."""
  found = None
  if processes.leads():
    found = checkpoints.restore(path, phase, like)
  if not processes.first_says(found is not None):
    return None
  step, state = found or (0, like)
  step, state = processes.same((np.int32(step), state))
  return int(step), state


def cluster(
  path: pathlib.Path, name: str, seed: int, x: jax.Array, options: dict
) -> tuple[Any, Any]:
  """Steps all restarts of a clusterer, by name, on points `[N, D]` until they
  stop; options are those of its `fit`.

  Returns:
    The best restart's result, and the state of them all.
  """
  clusterer = ALGORITHMS[name]
  run_options = {k: v for k, v in options.items() if k in (*_ENDS, 'reg')}
  start_options = {k: v for k, v in options.items() if k not in _ENDS}
  key = jax.random.fold_in(jax.random.key(seed), CLUSTERS)
  shape, (x, weight) = x.shape, processes.share_rows(x)
  state = clusterer.start(key, x, sample_weight=weight, **start_options)
  state = _on_one_device(state)
  phase = f'{name}-{seed}'
  step, state = _restored(path, phase, state) or (0, state)
  workdir.rewind_log(path, 'step', step, phase=name, seed=seed)
  operations = clusterer.operations(*shape, options[clusterer.groups])
  num_steps = plans.steps_per_call(len(state.num_steps) * operations)
  num_steps = min(_MOST_STEPS, HISTORY, num_steps)
  saver = _Saver(path, phase, step)
  with (
    signals.postponed(),
    console.progress(name, options['max_steps']) as show,
  ):
    while (state.stop_reason == StopReason.RUNNING).any():
      state, scores = clusterer.run(
        state, x, num_steps, sample_weight=weight, **run_options
      )
      if processes.are_several():
        state = _on_one_device(state)
      last, step = step, int(state.num_steps.max())
      scores = np.asarray(clusterer.in_units(state, scores[: step - last]))
      best = getattr(clusterer.best(state), clusterer.score)
      score = {clusterer.score: float(best)}
      record = score | {'restarts': _rounded(scores)}
      workdir.log(path, phase=name, seed=seed, step=step, **record)
      saver.save(step, state)
      running = int((state.stop_reason == StopReason.RUNNING).sum())
      show(step, f'{_text(score)}  {running} running')
    saver.save(step, state, final=True)
  result = clusterer.best(state)
  clusterer.warn(result)
  return result, state


def labelings(
  name: str, state: Any, x: jax.Array, options: dict, most: int
) -> list[np.ndarray]:
  """The labels `[N]` of points by each of the first restarts of `cluster`."""
  clusterer = ALGORITHMS[name]
  assigner = clusterer.assigner(options)
  runs = state._replace(frame=())
  found = []
  for run in range(min(len(state.num_steps), most)):
    alone = jax.tree.map(lambda a: a[run : run + 1], runs)  # noqa: B023
    result = clusterer.best(alone._replace(frame=state.frame))
    labels = assigner.predict(clusterer.clusters(result), x)
    found.append(np.asarray(labels))
  return found


def _on_one_device(state):
  """A state on one device of this process."""
  return jax.tree.map(jnp.asarray, jax.device_get(state))


def _rounded(scores):
  """Scores `[S, R]` with six digits; None for NaN, which JSON does not have."""
  return [
    [float(f'{v:.6g}') if np.isfinite(v) else None for v in row]
    for row in scores.tolist()
  ]


class _Saver:
  """Saves checkpoints of a phase, at most one in some seconds."""

  def __init__(self, path, phase, begun):
    self.path, self.phase = path, phase
    self.last = begun
    self._time = time.monotonic()

  def save(self, step, state, final=False):
    """Saves if the last time was long ago, or if there may be no other."""
    due = time.monotonic() - self._time > _SECONDS_BETWEEN_CHECKPOINTS
    # Asked once: a later signal waits.
    stop = processes.most(signals.requested())
    if (due or final or stop) and step != self.last:
      if processes.leads():
        with signals.saving():
          checkpoints.save(self.path, self.phase, step, state)
      self.last, self._time = step, time.monotonic()
    if stop:
      waits = signals.saving() if not processes.leads() else nullcontext()
      with waits:  # until process 0 has saved
        processes.meet()
      raise signals.Stopped(stop)


def _text(values):
  return '  '.join(f'{name} {value:.5g}' for name, value in values.items())

"""Runs that are killed or stopped end with the results of undisturbed runs.

A child process counts what it does with the files of its run, and sends itself
a signal at a chosen count, so that signals arrive in every phase and within
saves.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import ROOT, SMALL, draw_npz, read, run

from jaxclust import checkpoints, phases, plans, workdir

CHILD = """
import itertools, os, pathlib, sys
import launch
from jaxclust import cli, phases, plans

phases._SECONDS_BETWEEN_CHECKPOINTS = 0
phases._MOST_STEPS = 3
plans._CPU_OPERATIONS = {operations}  # a few training steps per call
moment, number, path = {moment}, {number}, '{path}'
counts = itertools.count(1)

def watch(event, arguments):
  place = arguments[0] if arguments else None
  if isinstance(place, (str, pathlib.PurePath)) and path in str(place):
    if next(counts) == moment:
      print('signal at', event, place, flush=True)
      os.kill(os.getpid(), number)

sys.addaudithook(watch)
status = launch.main(['launch.py', *sys.argv[1:]])
print('events', next(counts) - 1)
cli._end(status)
"""
FLAGS = {
  'gmm': [
    '--config=configs/gmm.py:digits',
    *SMALL['gmm'],
    '--config.training.num_epochs=3',
    '--config.training.patience=3',
    '--config.training.noise=0.1',
    '--config.gmm.num_restarts=2',
  ],
  'dec': ['--config=configs/dec.py:digits', *SMALL['dec']],
  'kmeans': ['--config=configs/kmeans.py:digits', *SMALL['kmeans']],
}
# Operations of a device call, by run.
OPERATIONS = {'gmm': 1e7, 'dec': 1e7, 'kmeans': 1e9}


class Whole(NamedTuple):
  """An undisturbed run."""

  name: str  # of its flags
  path: pathlib.Path
  num_events: int


@pytest.fixture(scope='module')
def run_child(tmp_path_factory):
  """Runs a child; its n-th event sends a signal if a moment n is given."""
  cache = tmp_path_factory.mktemp('programs')  # a kill may spoil one

  def run(name, path, moment=0, number=0):
    child = CHILD.format(
      operations=OPERATIONS[name], path=path, moment=moment, number=int(number)
    )
    return subprocess.run(
      [sys.executable, '-c', child, *FLAGS[name], f'--workdir={path}'],
      cwd=ROOT,
      env=os.environ
      | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.fixture(scope='module', params=list(FLAGS))
def whole(request, tmp_path_factory, run_child):
  path = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = run_child(request.param, path)
  assert done.returncode == 0, done.stderr
  return Whole(request.param, path, events_of(done))


def events_of(done):
  """How many events a child that was not killed has counted."""
  return int(re.search(r'^events (\d+)$', done.stdout, re.M)[1])


def restore(path, phase):
  """Returns the step and the bytes of the arrays of the newest checkpoint."""
  steps = checkpoints._steps(path / 'checkpoints' / phase)
  manifest = path / 'checkpoints' / phase / f'{steps[-1]}.json'
  arrays = json.loads(manifest.read_text())['arrays']
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    state = checkpointer.restore(manifest.with_suffix(''))
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
  assert len(leaves) == len(arrays)
  return phase, steps[-1], leaves


def results(path):
  """Returns all that a run writes, except seconds and warnings."""
  summary = json.loads((path / 'summary.json').read_text())
  del summary['seconds'], summary['warnings']
  with np.load(path / 'assignments.npz') as arrays:
    arrays = {name: arrays[name].tobytes() for name in arrays}
  records = [
    {k: v for k, v in json.loads(line).items() if k != 'seconds'}
    for line in (path / 'metrics.jsonl').read_text().splitlines()
  ]
  states = [restore(path, phase.name) for phase in path.glob('checkpoints/*')]
  figures = sorted(p.name for p in (path / 'figures').iterdir())
  return summary, arrays, records, states, figures


def assert_same(path, other):
  for found, expected in zip(results(path), results(other), strict=True):
    assert found == expected


@pytest.mark.slow
def test_runs_that_are_killed_end_like_one_that_is_not(
  whole, run_child, tmp_path, pytestconfig
):
  """A run that is killed, resumed and killed again."""
  kills, seed = (pytestconfig.getoption(o) for o in ('kills', 'kill_seed'))
  print(f'to repeat the moments: --kills={kills} --kill_seed={seed}')
  moments, path = random.Random(seed), tmp_path / 'run'
  share = {'gmm': kills - 2 * (kills // 3)}.get(whole.name, kills // 3)
  left = whole.num_events
  for _ in range(share):
    moment = moments.randrange(1, left)
    killed = run_child(whole.name, path, moment, signal.SIGKILL)
    if killed.returncode == 0:  # a resumed run has fewer events
      break
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    print(moment, 'of', left, killed.stdout.splitlines()[-1])
    left = max(2, left - moment)
  resumed = run_child(whole.name, path)
  assert resumed.returncode == 0, resumed.stderr
  assert_same(path, whole.path)


# Shares of the events that are left. A resumed run has some more, as it reads
# what was saved: its last signal comes while it draws figures.
SIGNALS = {
  'gmm': [(0.1, signal.SIGTERM), (0.5, signal.SIGINT), (1.1, signal.SIGTERM)],
  'dec': [(0.5, signal.SIGTERM)],
  'kmeans': [(0.5, signal.SIGINT)],
}


@pytest.mark.slow
def test_a_signal_in_any_phase_saves_and_ends(whole, run_child, tmp_path):
  path, left = tmp_path / 'run', whole.num_events
  for share, number in SIGNALS[whole.name]:
    stopped = run_child(whole.name, path, int(share * left), number)
    print(stopped.stdout)
    assert stopped.returncode == 128 + number, stopped.stderr
    left -= events_of(stopped)
    assert stopped.stderr == f'error: stopped by {number.name}\n'
    assert f'--workdir={os.path.relpath(path, ROOT)}' in stopped.stdout
  assert run_child(whole.name, path).returncode == 0
  assert_same(path, whole.path)


FLAGS_OF_GMM = ('--config.gmm.num_components=3', '--config.gmm.tol=1e-9')
STOPPED = {
  # Places where a process dies, right after a checkpoint; an epoch is 4 steps.
  'gmm': [('autoencoder', 14), ('gmm-0', 4), ('gmm-0', 8)],
  'dec': [('autoencoder', 6), ('dec', 2), ('dec', 6)],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', STOPPED)
def test_a_stopped_run_goes_on_where_it_was(name, tmp_path, monkeypatch):
  flags = [draw_npz(tmp_path / 'mine.npz'), *SMALL[name]]
  flags += ['--config.training.batch_size=16']
  flags += ['--config.training.num_epochs=5']
  flags += FLAGS_OF_GMM if name == 'gmm' else ()
  assert run(name, tmp_path / 'whole', *flags) == 0
  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(phases, '_MOST_STEPS', 4)
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 3e5)  # two steps of training
  for phase, step in STOPPED[name]:
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, 'save', dying(checkpoints.save, phase, step))
      with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / 'stopped', *flags)
  assert run(name, tmp_path / 'stopped', *flags) == 0
  whole, stopped = (read(tmp_path / d) for d in ('whole', 'stopped'))
  for summary in (whole, stopped):
    del summary['seconds']
  assert whole == stopped
  for stage, epochs in (('autoencoder', [1, 2, 3, 4, 5]), ('dec', [1, 2])):
    records = workdir.read_log(tmp_path / 'stopped', phase=stage)
    assert [r['epoch'] for r in records] in (epochs, [])
  if name == 'gmm':
    records = workdir.read_log(tmp_path / 'stopped', phase='gmm')
    steps = [r['step'] for r in records]
    assert steps[:2] == [4, 8]
    assert len(set(steps)) == len(steps)
  with (
    np.load(tmp_path / 'whole' / 'assignments.npz') as a,
    np.load(tmp_path / 'stopped' / 'assignments.npz') as b,
  ):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def dying(save, phase, step):
  def save_and_die(path, saved_phase, saved_step, state):
    save(path, saved_phase, saved_step, state)
    if saved_phase == phase and saved_step >= step:
      raise KeyboardInterrupt

  return save_and_die

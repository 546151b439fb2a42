"""Runs that are killed or stopped end with the results of undisturbed runs.

A child process counts its calls of functions of jaxclust and Orbax, and sends
itself a signal at a chosen count, so that signals arrive in every phase.
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
import os, sys
import launch
from jaxclust import cli, experiments, phases, plans

phases._SECONDS_BETWEEN_CHECKPOINTS = 0
phases._MOST_STEPS = 3
plans._CPU_OPERATIONS = {operations}  # a few training steps per call
signals = dict(eval(sys.argv[1]))
count = 0

def watch(frame, event, argument):
  global count
  name = frame.f_code.co_filename
  if event == 'call' and ('jaxclust' in name or 'orbax' in name):
    count += 1
    if count in signals:
      print('signal in', frame.f_code.co_name, flush=True)
      os.kill(os.getpid(), signals[count])

sys.setprofile(watch)
status = launch.main(['launch.py', *sys.argv[2:]])
sys.setprofile(None)
print('calls', count)
cli._end(status)
"""
FLAGS = {
  'gmm': [
    '--config=configs/gmm.py:digits',
    '--config.training.num_epochs=3',
    '--config.training.patience=3',
    '--config.training.noise=0.1',
    '--config.gmm.num_restarts=2',
  ],
  'dec': ['--config=configs/dec.py:digits', *SMALL['dec']],
  'kmeans': ['--config=configs/kmeans.py:digits'],
}
# Operations of a device call, by run.
OPERATIONS = {'gmm': 6e8, 'dec': 3e6, 'kmeans': 1e9}


class Whole(NamedTuple):
  """An undisturbed run."""

  name: str  # of its flags
  path: pathlib.Path
  num_calls: int
  cache: pathlib.Path  # of the programs it compiled


def run_child(name, path, cache, signals=()):
  """Runs a child whose n-th call sends a signal, for pairs (n, signal)."""
  environment = os.environ | {
    'JAX_ENABLE_COMPILATION_CACHE': '1',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }
  moments = [(moment, int(number)) for moment, number in signals]
  child = CHILD.format(operations=OPERATIONS[name])
  command = [sys.executable, '-c', child, repr(moments), *FLAGS[name]]
  return subprocess.run(
    [*command, f'--workdir={path}'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module', params=list(FLAGS))
def whole(request, tmp_path_factory):
  name = request.param
  folder = tmp_path_factory.mktemp('undisturbed')
  cache = folder / 'programs'
  run_child(name, folder / 'first', cache)
  done = run_child(name, folder / 'run', cache)
  assert done.returncode == 0, done.stderr
  num_calls = int(re.search(r'calls (\d+)', done.stdout)[1])
  return Whole(name, folder / 'run', num_calls, cache)


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
  whole, tmp_path, pytestconfig
):
  kills, seed = (pytestconfig.getoption(o) for o in ('kills', 'kill_seed'))
  print(f'to repeat the moments: --kills={kills} --kill_seed={seed}')
  moments = random.Random(seed)
  share = {'gmm': kills - 2 * (kills // 3)}.get(whole.name, kills // 3)
  for _ in range(share):
    moment = moments.randrange(1, whole.num_calls)
    path = tmp_path / str(moment)
    sent = [(moment, signal.SIGKILL)]
    killed = run_child(whole.name, path, whole.cache, sent)
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    print(moment, 'of', whole.num_calls, killed.stdout.splitlines()[-1])
    resumed = run_child(whole.name, path, whole.cache)
    assert resumed.returncode == 0, (moment, resumed.stderr)
    assert_same(path, whole.path)


SIGNALS = {
  'gmm': [(0.3, signal.SIGTERM), (0.6, signal.SIGINT), (0.95, signal.SIGTERM)],
  'dec': [(0.5, signal.SIGTERM)],
  'kmeans': [(0.5, signal.SIGINT)],
}


@pytest.mark.slow
def test_a_signal_in_any_phase_saves_and_ends(whole, tmp_path):
  path = tmp_path / 'run'
  for share, number in SIGNALS[whole.name]:
    moment = int(share * whole.num_calls)
    stopped = run_child(whole.name, path, whole.cache, [(moment, number)])
    if stopped.returncode == 0:  # a resumed run makes fewer calls
      break
    assert stopped.returncode == 128 + number, stopped.stderr
    assert stopped.stderr == f'error: stopped by {number.name}\n'
    assert f'--workdir={os.path.relpath(path, ROOT)}' in stopped.stdout
  assert run_child(whole.name, path, whole.cache).returncode == 0
  assert_same(path, whole.path)


FLAGS_OF_GMM = (
  *('--config.network.name=mlp', '--config.network.features=(16, 5)'),
  *('--config.gmm.num_components=3', '--config.gmm.tol=1e-9'),
)
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

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

from jaxclust import checkpoints

ROOT = pathlib.Path(__file__).parent.parent
CHILD = """
import os, sys
import launch
from jaxclust import cli, experiments, fitting

fitting._SECONDS_BETWEEN_CHECKPOINTS = 0
fitting._MOST_STEPS = 3
fitting._CPU_OPERATIONS = 6e8  # a few training steps per call
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
  'kmeans': ['--config=configs/kmeans.py:digits'],
}


class Whole(NamedTuple):
  """An undisturbed run."""

  name: str  # of its flags
  path: pathlib.Path
  num_calls: int
  cache: pathlib.Path  # of the programs it compiled


def run(name, path, cache, signals=()):
  """Runs a child whose n-th call sends a signal, for pairs (n, signal)."""
  environment = os.environ | {
    'JAX_ENABLE_COMPILATION_CACHE': '1',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }
  moments = [(moment, int(number)) for moment, number in signals]
  command = [sys.executable, '-c', CHILD, repr(moments), *FLAGS[name]]
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
  run(name, folder / 'first', cache)
  done = run(name, folder / 'run', cache)
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
  share = {'gmm': kills - kills // 3, 'kmeans': kills // 3}
  for _ in range(share[whole.name]):
    moment = moments.randrange(1, whole.num_calls)
    path = tmp_path / str(moment)
    killed = run(whole.name, path, whole.cache, [(moment, signal.SIGKILL)])
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    print(moment, 'of', whole.num_calls, killed.stdout.splitlines()[-1])
    resumed = run(whole.name, path, whole.cache)
    assert resumed.returncode == 0, (moment, resumed.stderr)
    assert_same(path, whole.path)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_any_phase_saves_and_ends(number, whole, tmp_path):
  path = tmp_path / 'run'
  for share in (0.3, 0.6, 0.95) if whole.name == 'gmm' else (0.5,):
    moment = int(share * whole.num_calls)
    stopped = run(whole.name, path, whole.cache, [(moment, number)])
    if stopped.returncode == 0:  # a resumed run makes fewer calls
      break
    assert stopped.returncode == 128 + number, stopped.stderr
    assert stopped.stderr == f'error: stopped by {number.name}\n'
    assert f'--workdir={os.path.relpath(path, ROOT)}' in stopped.stdout
  assert run(whole.name, path, whole.cache).returncode == 0
  assert_same(path, whole.path)

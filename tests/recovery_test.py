"""Runs that are killed or stopped end in what undisturbed runs end in.

A child counts its calls of functions of the package and of Orbax, and sends
itself a signal at a certain one: moments are chosen by count, over all phases.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxclust import fitting, training, workdir
from jaxclust.autoencoder import Autoencoder

ROOT = pathlib.Path(__file__).parent.parent
CHILD = """
import os, sys
import launch
from jaxclust import experiments, fitting

fitting._SECONDS_BETWEEN_CHECKPOINTS = 0
fitting._MOST_STEPS = 3
fitting._CPU_OPERATIONS = 6e8  # some steps of the network
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
sys.exit(status)
"""
FLAGS = [
  '--config=configs/gmm.py:digits',
  '--config.training.num_epochs=3',
  '--config.training.patience=3',
  '--config.training.noise=0.1',
  '--config.gmm.num_restarts=2',
  '--config.num_seeds=1',
]


def run(path, signals=(), cache=None):
  """A run whose n-th call sends a signal, for pairs (n, signal)."""
  environment = os.environ | {
    'JAX_ENABLE_COMPILATION_CACHE': '1',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }
  moments = [(moment, int(number)) for moment, number in signals]
  command = [sys.executable, '-c', CHILD, repr(moments), *FLAGS]
  return subprocess.run(
    [*command, f'--workdir={path}'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The directory of a whole run, its calls, and the programs it compiled."""
  folder = tmp_path_factory.mktemp('undisturbed')
  cache = folder / 'programs'
  run(folder / 'first', cache=cache)
  done = run(folder / 'run', cache=cache)
  assert done.returncode == 0, done.stderr
  return folder / 'run', int(re.search(r'calls (\d+)', done.stdout)[1]), cache


def results(path):
  """All that a run leaves behind, but for seconds and warnings."""
  summary = json.loads((path / 'summary.json').read_text())
  del summary['seconds'], summary['warnings']
  with np.load(path / 'assignments.npz') as arrays:
    arrays = {name: arrays[name].tobytes() for name in arrays}
  records = [
    {k: v for k, v in json.loads(line).items() if k != 'seconds'}
    for line in (path / 'metrics.jsonl').read_text().splitlines()
  ]
  seeds = [0]
  model = Autoencoder((8, 8, 1), (16, 8))
  state = training.init(fitting.draw_keys(seeds, fitting.INIT), model)
  course = fitting._Course(state, training.no_best(state.params))
  step, course = workdir.restore(path, 'autoencoder', course)
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(course)]
  figures = sorted(p.name for p in (path / 'figures').iterdir())
  return summary, arrays, records, (step, leaves), figures


def assert_same(path, other):
  for found, expected in zip(results(path), results(other), strict=True):
    assert found == expected


@pytest.mark.slow
def test_runs_that_are_killed_end_like_one_that_is_not(
  undisturbed, tmp_path, pytestconfig
):
  whole, calls, cache = undisturbed
  seed = random.SystemRandom().randrange(2**32)
  print('seed of the moments:', seed)
  moments = random.Random(seed)
  for _ in range(pytestconfig.getoption('kills')):
    moment = moments.randrange(1, calls)
    path = tmp_path / str(moment)
    killed = run(path, [(moment, signal.SIGKILL)], cache)
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    print(moment, 'of', calls, killed.stdout.splitlines()[-1])
    resumed = run(path, cache=cache)
    assert resumed.returncode == 0, (moment, resumed.stderr)
    assert_same(path, whole)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_any_phase_saves_and_ends(number, undisturbed, tmp_path):
  whole, calls, cache = undisturbed
  path = tmp_path / 'run'
  for share in (0.3, 0.6, 0.95):
    moment = int(share * calls)
    stopped = run(path, [(moment, number)], cache)
    if stopped.returncode == 0:  # it had less left to do than that
      break
    assert stopped.returncode == 128 + number, stopped.stderr
    assert stopped.stderr == f'error: stopped by {number.name}\n'
    assert f'--workdir={os.path.relpath(path, ROOT)}' in stopped.stdout
  assert run(path, cache=cache).returncode == 0
  assert_same(path, whole)

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

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import ROOT, draw_npz

from jaxclust import checkpoints, defaults, phases, workdir

CHILD = """
import itertools, os, pathlib, sys
import launch
from jaxclust import cli, phases, plans

phases._SECONDS_BETWEEN_CHECKPOINTS = 0
phases._MOST_STEPS = 3
plans._CPU_OPERATIONS = 3e5  # two training steps per call
moment, number, path, place = {moment}, {number}, '{path}', '{place}'
counts, moments = itertools.count(1), itertools.count(1)

def watch(event, arguments):
  file = arguments[0] if arguments else None
  if isinstance(file, (str, pathlib.PurePath)) and path in str(file):
    next(counts)
    if place in str(file) and next(moments) == moment:
      print('signal at', event, file, flush=True)
      os.kill(os.getpid(), number)

sys.addaudithook(watch)
status = launch.main(['launch.py', *sys.argv[1:]])
print('events', next(counts) - 1)
cli._end(status)
"""
# All phases that there are, on few images.
CONFIG = """
from jaxclust import defaults

def get_config():
  config = defaults.pipeline('digits', ('autoencoder', 'dec'), clusterer='gmm')
  config.network = {'name': 'mlp', 'features': (16, 5)}
  config.training.update(num_epochs=3, batch_size=16, patience=3, noise=0.1)
  config.dec = {
    'num_clusters': 3, 'num_restarts': 2, 'divergence': 1.0,
    'reconstruction': 0.0, 'num_epochs': 2, 'patience': 0,
  }
  config.gmm = {
    'num_components': 3, 'covariance': 'full', 'num_restarts': 2,
    'init': 'k-means', 'max_steps': 12, 'tol': 1e-9, 'reg': 1e-2,
  }
  return config
"""


class Whole(NamedTuple):
  """An undisturbed run."""

  path: pathlib.Path
  num_events: int


@pytest.fixture(scope='module')
def run_child(tmp_path_factory):
  """Runs a child; the n-th event in a place sends a signal if there is an n."""
  folder = tmp_path_factory.mktemp('child')
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (30, 6, 7), np.uint8)
  labels, test_labels = np.arange(60) % 3, np.arange(30) % 3
  (folder / 'config.py').write_text(CONFIG)
  flags = [
    f'--config={folder}/config.py',
    draw_npz(
      folder / 'mine.npz',
      labels=labels,
      test_images=images,
      test_labels=test_labels,
    ),
  ]
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(folder),  # a kill may spoil one
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(ROOT),
  }

  def run(path, moment=0, number=0, place=''):
    child = CHILD.format(
      path=path, moment=moment, number=int(number), place=place
    )
    return subprocess.run(
      [sys.executable, '-c', child, *flags, f'--workdir={path}'],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.fixture(scope='module')
def whole(tmp_path_factory, run_child):
  path = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = run_child(path)
  assert done.returncode == 0, done.stderr
  return Whole(path, events_of(done))


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
  """Returns all that a run writes, but what was typed, seconds and warnings."""
  summary = json.loads((path / 'summary.json').read_text())
  del summary['command'], summary['seconds'], summary['warnings']
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
  left = whole.num_events
  for _ in range(kills):
    moment = moments.randrange(1, left)
    killed = run_child(path, moment, signal.SIGKILL)
    if killed.returncode == 0:  # a resumed run has fewer events
      break
    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    print(moment, 'of', left, killed.stdout.splitlines()[-1])
    left = max(2, left - moment)
  resumed = run_child(path)
  assert resumed.returncode == 0, resumed.stderr
  assert_same(path, whole.path)


SIGNALS = {
  'autoencoder': (60, signal.SIGTERM),  # the moment is within a later save
  'dec': (60, signal.SIGINT),
  'gmm-0': (1, signal.SIGTERM),
}


@pytest.mark.slow
def test_a_signal_in_any_phase_saves_and_ends(whole, run_child, tmp_path):
  path, told = tmp_path / 'run', []

  def stop(place, moment, number):
    stopped = run_child(path, moment, number, place)
    print(stopped.stdout)
    told.extend(re.findall(r'^(?:autoencoder|dec) \d', stopped.stdout, re.M))
    assert stopped.returncode == 128 + number, stopped.stderr
    assert stopped.stderr == f'error: stopped by {number.name}\n'
    assert f'--workdir={os.path.relpath(path, ROOT)}' in stopped.stdout

  for phase, (moment, number) in SIGNALS.items():
    stop(f'checkpoints/{phase}', moment, number)
    step, last = (restore(p, phase)[1] for p in (path, whole.path))
    assert step < last
  stop('figures', 1, signal.SIGINT)
  assert not (path / 'summary.json').exists()
  assert run_child(path).returncode == 0
  assert_same(path, whole.path)
  assert len(set(told)) == len(told) > 2  # no epoch was made twice


def test_a_stopped_clustering_goes_on_where_it_was(tmp_path, monkeypatch):
  """As mixtures above, so k-means."""
  x = jnp.asarray(np.random.default_rng(0).random((90, 5), np.float32))
  options = defaults.kmeans(num_clusters=4, num_restarts=3, tol=0.0).to_dict()
  save, saved = checkpoints.save, []

  def save_and_die(path, phase, step, state):
    save(path, phase, step, state)
    saved.append(step)
    if saved in ([1, 2], [1, 2, 3, 4]):
      raise KeyboardInterrupt

  def cluster(name):
    (tmp_path / name).mkdir(exist_ok=True)
    return phases.cluster(tmp_path / name, 'kmeans', 0, x, options)

  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(phases, '_MOST_STEPS', 1)
  whole = cluster('whole')
  monkeypatch.setattr(checkpoints, 'save', save_and_die)
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      cluster('stopped')
  chex.assert_trees_all_equal(cluster('stopped'), whole)
  logs = [
    workdir.read_log(tmp_path / name, phase='kmeans')
    for name in ('whole', 'stopped')
  ]
  assert logs[0] == logs[1]
  assert saved == [record['step'] for record in logs[0]]
  assert len(saved) > 4

"""The launcher: mistakes, failures, and what a directory is left with."""

import errno
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_runs import ROOT, SMALL, draw_npz, read, run

import launch
from jaxclust import checkpoints, experiments, phases, runtime, training
from jaxclust.report import explorer, figures, page


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_a_finished_run_is_left_alone(finished, capfd):
  path = finished('kmeans').path
  before = {p: p.stat().st_mtime_ns for p in path.rglob('*')}
  assert run('kmeans', path, *SMALL['kmeans']) == 0
  assert 'already finished' in capfd.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in path.rglob('*')}
  assert after == before


def test_a_training_that_diverges_ends_and_keeps_what_it_has_saved(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  losses = training._losses

  def diverging(state, plan):
    found = losses(state, plan)
    return found if state.step <= 44 else found | {'val_loss': [np.nan]}

  monkeypatch.setattr(training, '_losses', diverging)
  flags = [*SMALL['ae_kmeans'], '--config.training.num_epochs=3']
  assert run('ae_kmeans', tmp_path, *flags) == 3
  message = capfd.readouterr().err
  assert 'lower learning_rate, which is 0.001' in message
  assert 'checkpoint of step 44 is kept' in message
  assert not (tmp_path / 'summary.json').exists()
  kept = tmp_path / 'checkpoints' / 'autoencoder'
  steps = sorted(p.name for p in kept.iterdir() if p.is_dir())
  assert steps == ['22', '44']


def test_a_full_disk_ends_with_a_message_and_loses_nothing(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(phases, '_MOST_STEPS', 1)
  save = checkpoints.save

  def fill(path, phase, step, state):
    if step > 1:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save(path, phase, step, state)

  flags = [draw_npz(tmp_path / 'mine.npz'), *SMALL['kmeans']]
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, 'save', fill)
    assert run('kmeans', tmp_path / 'run', *flags) == 3
  message = capfd.readouterr().err
  assert 'cannot be written (No space left on device): make room' in message
  assert message.count('\n') == 1
  assert run('kmeans', tmp_path / 'run', *flags) == 0


GMM, DEC = '--config=configs/gmm.py:digits', '--config=configs/dec.py:digits'
KMEANS = '--config=configs/kmeans.py:digits'


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      [GMM, '--config.sed=1'],
      'there is no config.sed: did you mean config.seed?',
    ),
    (
      [GMM, '--config.gm.reg=1'],
      'did you mean config.gmm.reg?',
    ),
    (
      [GMM, '--config.seed.x=1'],
      'did you mean config.seed?',
    ),
    (
      [GMM, '--config.network.features[9]=1'],
      'did you mean config.network.features?',
    ),
    (
      [GMM, '--config.seed=1.5'],
      "config.seed is '1.5': it must be a whole number",
    ),
    (
      [GMM, '--config.gmm.reg=much'],
      "config.gmm.reg is 'much': it must be a number",
    ),
    (
      [GMM, '--config.standardize=maybe'],
      "config.standardize is 'maybe': it must be true or false",
    ),
    (
      [GMM, '--config.training=3'],
      "config.training is '3': it must be a group",
    ),
    (
      [GMM, '--config.seed'],
      'Missing value for flag --config.seed',
    ),
    ([GMM, '--wokdir=x'], '--workdir?'),
    ([GMM, '-x'], 'there is no flag --x'),
    ([GMM, '--', 'x'], "'x' belongs to no flag"),
    (['--config=README.md'], "there is no config 'README.md'"),
    (['--config=configs'], "there is no config 'configs'"),
    (['--config=tests/conftest.py'], 'gives no config (AttributeError'),
    ([GMM, 'stray'], "'stray' belongs to no"),
    (['--config=configs/gmm.py:digts'], "variant is 'digts'"),
    (
      ['--config=configs/gm.py'],
      "no config 'configs/gm.py': did you mean configs/gmm.py?",
    ),
    ([], 'add --config=NAME'),
    (
      [
        KMEANS,
        '--config.kmeans.num_clusters=2000',
      ],
      'num_clusters is 2000, but x has only 1348 rows',
    ),
    (
      [GMM, '--config.seed=-1'],
      'config.seed is -1',
    ),
    (
      [GMM, '--config.num_seeds=0'],
      'config.num_seeds is 0',
    ),
    (
      [GMM, '--config.training.placement=disk'],
      "placement is 'disk'",
    ),
    (
      [GMM, '--config.training.noise=-1.0'],
      'noise is -1',
    ),
    (
      [GMM, '--config.gmm.covariance=ful'],
      "covariance is 'ful'",
    ),
    (
      [GMM, '--config.training.batch_size=0'],
      'batch_size is 0',
    ),
    (
      [GMM, '--config.network.features=(0,)'],
      'each of features is 0',
    ),
    (
      [GMM, '--config.experiment=gm'],
      "config.experiment is 'gm'",
    ),
    (
      [GMM, '--config.data.name=digitz'],
      'digits',
    ),
    (
      [GMM, '--config.data.size=(8, 8, 1)'],
      'config.data.size is (8, 8, 1)',
    ),
    ([GMM, '--config.network.name=resnet'], "network.name is 'resnet'"),
    ([GMM, '--config.training.optimizer=lion'], "optimizer is 'lion'"),
    ([GMM, '--config.clusterer=kmean'], "config.clusterer is 'kmean'"),
    ([GMM, '--config.clusterer=kmeans'], 'there is no config.kmeans'),
    ([GMM, '--config.clusterer='], "('autoencoder',) do not assign images"),
    ([GMM, "--config.stages=('dek',)"], "each of config.stages is 'dek'"),
    ([GMM, '--config.experiment=sweep'], 'there is no config.sweep'),
    ([KMEANS, '--config.clusterer='], 'stages () do not assign images'),
    ([KMEANS, '--config.kmeans.metric=cos'], "metric is 'cos'"),
    ([KMEANS, "--config.stages=('dec',)"], 'there is no config.network'),
    ([GMM, "--config.stages=('dec',)"], 'config.dec.num_clusters is missing'),
    (
      [DEC, "--config.stages=('dec','autoencoder')"],
      'autoencoder cannot go on from the stages before it',
    ),
    (
      [DEC, "--config.stages=('autoencoder','autoencoder')"],
      'autoencoder cannot go on from the stages before it',
    ),
    ([DEC, '--config.dec.num_clusters=0'], 'num_clusters is 0'),
    ([DEC, '--config.dec.num_clusters=2000'], 'x has only 1348 rows'),
    ([DEC, '--config.dec.divergence=-1.'], 'divergence is -1'),
    ([DEC, '--config.dec.optimizer=lion'], "optimizer is 'lion'"),
    ([DEC, '--config.training.patience=1'], 'set patience to 0'),
    ([DEC, '--config.standardize=True'], 'dec assigns its embeddings as they'),
    (
      ['--config=configs/predict.py:digits'],
      "the run '' is not a directory",
    ),
    (
      ['--config=configs/predict.py:digits', '--config.run=tests'],
      'tests holds no run: name the directory of one',
    ),
  ],
)
def test_a_mistake_is_answered_in_one_line(flags, message, tmp_path, capfd):
  path = tmp_path / 'run'
  status = launch.main(['launch.py', *flags, f'--workdir={path}'])
  captured = capfd.readouterr()
  assert status == 2
  assert captured.err.startswith('error: ')
  assert captured.err.count('\n') == 1
  assert message in captured.err
  assert not path.exists()


def test_an_empty_workdir_is_not_the_present_one(capfd):
  config = '--config=configs/gmm.py:digits'
  assert launch.main(['launch.py', config, '--workdir=']) == 2
  assert 'workdir is empty' in capfd.readouterr().err


@pytest.mark.parametrize(
  ('code', 'told'),
  [
    ('def get_config(:', 'SyntaxError'),
    ('def get_config():\n  return 1 / 0', 'ZeroDivisionError.*line 2'),
    ('import no_such_module', 'No module named'),
    ('def get_config():\n  return None', 'NoneType'),
  ],
)
def test_a_config_that_fails_is_told_in_one_line(code, told, tmp_path, capfd):
  path = tmp_path / 'mine.py'
  path.write_text(code)
  assert launch.main(['launch.py', f'--config={path}']) == 2
  error = capfd.readouterr().err
  assert re.search(f'mine.py gives no config .*{told}', error)
  assert error.count('\n') == 1


OWN = """
from jaxclust import defaults

def get_config():
  config = defaults.pipeline('digits', ('autoencoder', 'dec'), clusterer='')
  config.dec = {'num_clusters': 10, %s}
  return config
"""


@pytest.mark.parametrize(
  ('option', 'near'),
  [
    ("'divergense': 1.", 'config.dec.divergence'),
    ("'num_epoch': 3", 'config.dec.num_epochs'),
  ],
)
def test_an_option_that_a_method_lacks_is_a_mistake(
  option, near, tmp_path, capfd
):
  path = tmp_path / 'mine.py'
  path.write_text(OWN % option)
  flags = [f'--config={path}', f'--workdir={tmp_path}/run']
  assert launch.main(['launch.py', *flags]) == 2
  error = capfd.readouterr().err
  assert error.startswith(f'error: there is no config.dec.{option[1:9]}')
  assert error.endswith(f'did you mean {near}?\n')
  assert not (tmp_path / 'run').exists()


def test_a_directory_that_cannot_be_used_is_told_before_data_are_read(
  tmp_path, capfd, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setattr(experiments.data, 'load', None)
  assert run('kmeans', tmp_path / 'file') == 2
  assert 'cannot be written' in capfd.readouterr().err


def test_a_run_goes_on_with_the_images_it_began_with_or_not_at_all(
  tmp_path, capfd, monkeypatch
):
  """Killed or finished: other images under the old name are an error."""
  name = draw_npz(tmp_path / 'mine.npz')
  before = (tmp_path / 'mine.npz').read_bytes()
  flags = [name, *SMALL['kmeans']]
  with monkeypatch.context() as patch:
    patch.setattr(phases, 'cluster', lambda *args: {}['gone'])
    assert run('kmeans', tmp_path / 'run', *flags) == 3
  other = tmp_path / 'other'
  other.mkdir()
  draw_npz(other / 'mine.npz', images=np.zeros((60, 6, 7), np.uint8))
  for _ in range(2):
    shutil.copy(other / 'mine.npz', tmp_path / 'mine.npz')
    capfd.readouterr()
    assert run('kmeans', tmp_path / 'run', *flags) == 2
    assert re.search(
      r'images .*mine\.npz changed since .* began: put the old ones back',
      capfd.readouterr().err,
    )
    (tmp_path / 'mine.npz').write_bytes(before)
    assert run('kmeans', tmp_path / 'run', *flags) == 0
  (tmp_path / 'mine.npz').unlink()
  assert run('kmeans', tmp_path / 'run', *flags) == 0
  assert 'already finished' in capfd.readouterr().out


def test_a_damaged_origin_is_named(tmp_path, capfd):
  assert run('kmeans', tmp_path / 'run', *SMALL['kmeans']) == 0
  for content in ('{', '{}', '{"versions": 1}'):
    (tmp_path / 'run' / 'origin.json').write_text(content)
    assert run('kmeans', tmp_path / 'run', *SMALL['kmeans']) == 2
    assert 'origin.json is damaged' in capfd.readouterr().err


@pytest.mark.parametrize('part', ['charts', 'map', 'page'])
def test_nothing_that_only_draws_ends_a_run(tmp_path, monkeypatch, part):
  def fail(*args, **options):
    raise MemoryError('no room')

  if part == 'charts':
    monkeypatch.setattr(figures, '_save', fail)
  elif part == 'map':
    monkeypatch.setattr(explorer, 'build', fail)
  else:
    monkeypatch.setattr(page, 'render', fail)
  assert run('kmeans', tmp_path, *SMALL['kmeans']) == 0
  told = read(tmp_path)['warnings']
  names = {
    'charts': 'map_pca_class.png',
    'map': 'the map to play with',
    'page': 'report.html',
  }[part]
  assert any(f'{names} cannot be drawn (MemoryError' in line for line in told)
  assert (tmp_path / 'report.html').exists() == (part != 'page')
  assert (tmp_path / 'assignments.npz').exists()


def test_a_run_goes_on_with_another_version_if_that_is_allowed(
  tmp_path, capfd, monkeypatch
):
  path = tmp_path / 'run'
  assert run('kmeans', path, *SMALL['kmeans']) == 0
  began, now = runtime.versions(), runtime.versions() | {'jax': '99.0'}
  monkeypatch.setattr(runtime, 'versions', lambda: now)
  change = f'jax {jax.__version__} (now 99.0)'

  capfd.readouterr()
  assert run('kmeans', path, *SMALL['kmeans']) == 0
  assert f'run is of {change}' in capfd.readouterr().out

  (path / 'summary.json').unlink()
  assert run('kmeans', path, *SMALL['kmeans']) == 2
  assert f'run began with {change}: install' in capfd.readouterr().err
  assert not (path / 'summary.json').exists()

  assert run('kmeans', path, '--allow_upgrade', *SMALL['kmeans']) == 0
  summary = read(path)
  assert summary['versions'] == now
  assert summary['earlier_versions'] == [began]
  assert f'began with {change}' in summary['warnings'][0]


def test_an_unexpected_error_leaves_its_traceback_in_the_directory(
  tmp_path, capfd, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(phases, 'cluster', lambda *args: {}['gone'])
    assert run('kmeans', tmp_path, *SMALL['kmeans']) == 3
  error = capfd.readouterr().err
  assert error.startswith("error: unexpected KeyError ('gone'): its traceback")
  assert error.count('\n') == 1
  kept = (tmp_path / 'error.log').read_text()
  assert 'Traceback (most recent call last)' in kept
  assert "KeyError: 'gone'" in kept
  assert run('kmeans', tmp_path, *SMALL['kmeans']) == 0


def test_a_relative_directory_is_one_of_where_it_is_run(tmp_path, monkeypatch):
  config = f'--config={ROOT}/configs/kmeans.py:digits'
  monkeypatch.chdir(tmp_path)
  flags = [config, '--workdir=a/run', *SMALL['kmeans']]
  assert launch.main(['launch.py', *flags]) == 0
  assert read(tmp_path / 'a' / 'run')['experiment'] == 'kmeans'


ALONE = """
import importlib.machinery, sys

finder = importlib.machinery.PathFinder
find = finder.find_spec

def find_others(name, *args):
  frameworks = ('tensorflow', 'torch', 'keras', 'faiss')
  return None if name.partition('.')[0] in frameworks else find(name, *args)

finder.find_spec = staticmethod(find_others)
import launch

sys.exit(launch.main(sys.argv))
"""


@pytest.mark.slow
def test_a_run_needs_no_other_framework_and_writes_plain_lines(tmp_path):
  flags = ['--config=configs/ae_kmeans.py:digits', *SMALL['ae_kmeans']]
  done = subprocess.run(
    [sys.executable, '-c', ALONE, *flags, f'--workdir={tmp_path}/run'],
    cwd=ROOT,
    env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    capture_output=True,
    text=True,
    check=True,
  )
  told = done.stdout + done.stderr
  assert told.count('\n') > 10
  assert all(c.isprintable() or c == '\n' for c in told)

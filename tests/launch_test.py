"""The command line: every config from end to end, and what it answers."""

import csv
import ctypes
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image

import jaxclust
import launch
from jaxclust import (
  benchmark,
  checkpoints,
  cli,
  data,
  experiments,
  fitting,
  selection,
  workdir,
)

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
  'kmeans': ['--config.kmeans.num_restarts=2'],
  'ae_kmeans': [
    '--config.kmeans.num_restarts=2',
    '--config.training.num_epochs=2',
  ],
  'gmm': ['--config.gmm.num_restarts=1', '--config.training.num_epochs=2'],
}
PIPELINES = list(SMALL)
SMALL |= {
  'predict': ['--config.export=True'],
  'sweep': [
    '--config.sweep.num_clusters=(1, 3, 2)',
    '--config.sweep.num_restarts=2',
    '--config.training.num_epochs=2',
  ],
  'benchmark': [
    '--config.benchmark.kmeans.num_restarts=2',
    "--config.benchmark.mixtures.covariances=('tied',)",
    '--config.benchmark.mixtures.dims=(8,)',
    '--config.benchmark.rounds=2',
    '--config.benchmark.limit_size=64',
  ],
}


@pytest.fixture(autouse=True)
def _at_the_top(monkeypatch):
  monkeypatch.chdir(ROOT)


def run(name, path, *flags):
  config = f'--config=configs/{name}.py:digits'
  return launch.main(['launch.py', config, f'--workdir={path}', *flags])


def read(path, name='summary.json'):
  return json.loads((path / name).read_text())


ALLOCATE = """
import ctypes
from jaxclust import experiments

class Info(ctypes.Structure):  # as mallinfo(3) has it
  _fields_ = [(name, ctypes.c_size_t) for name in (
    'arena', 'ordblks', 'smblks', 'hblks', 'mapped', 'usmblks', 'fsmblks',
    'used', 'free', 'keepcost')]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
before = libc.mallinfo2()
experiments._keep_freed_memory()
large = libc.malloc(ctypes.c_size_t(2**27))
assert libc.mallinfo2().mapped == before.mapped, 'a map of its own'
libc.free(ctypes.c_void_p(large))
assert libc.mallinfo2().free >= 2**27, 'given back'
"""


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallinfo2'), reason='only glibc tells'
)
def test_large_buffers_stay_with_the_process_once_freed():
  subprocess.run([sys.executable, '-c', ALLOCATE], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_second_run_loads_what_the_first_has_compiled(tmp_path):
  arrays, programs = [], []
  for name in ('first', 'second'):
    command = [sys.executable, 'launch.py', '--config=configs/gmm.py:digits']
    command += [f'--workdir={tmp_path / name}', *SMALL['gmm']]
    environment = os.environ | {
      'XDG_CACHE_HOME': str(tmp_path),
      'JAX_COMPILATION_CACHE_DIR': '',
      'JAX_ENABLE_COMPILATION_CACHE': '1',
    }
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    arrays.append((tmp_path / name / 'assignments.npz').read_bytes())
    entries = (tmp_path / 'jaxclust').glob('*-cache')
    programs.append({path.name for path in entries})
  assert len(programs[0]) > 20  # and so the small ones too
  assert programs[0] == programs[1]
  assert arrays[0] == arrays[1]


def test_a_place_that_cannot_be_written_keeps_no_programs(
  tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    experiments._keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_every_config_is_run_here():
  assert {p.stem for p in (ROOT / 'configs').glob('*.py')} == set(SMALL)


@pytest.mark.parametrize('name', PIPELINES)
def test_a_config_runs_from_end_to_end(name, tmp_path, capfd):
  assert run(name, tmp_path, *SMALL[name]) == 0
  lines = capfd.readouterr().out.splitlines()
  assert lines[-1] == os.path.relpath(tmp_path)
  assert any('ARI' in line for line in lines)
  assert '\x1b' not in ''.join(lines)
  summary = read(tmp_path)
  assert summary['experiment'] == name
  assert summary['dataset']['num_train'] == 1348
  assert summary['dataset']['num_test'] == 449
  for split in ('train', 'test'):
    scores = summary[split]
    assert 0 < scores['ari'] < 1
    assert len(scores['cluster_purity']) == 10
  assert summary['fit']['stop_reason'] == 'converged'
  assert 'data' in summary['seconds']
  with np.load(tmp_path / 'assignments.npz') as arrays:
    assert arrays['train_labels'].shape == (1348,)
    assert arrays['test_labels'].dtype == np.int32
    if name == 'gmm':
      shares = arrays['test_responsibilities']
      np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
      np.testing.assert_array_equal(
        shares.argmax(axis=1), arrays['test_labels']
      )
  figures = {p.name for p in (tmp_path / 'figures').iterdir()}
  expected = {'confusion.png', 'purity.png', 'sizes.png', 'convergence.png'}
  networks = {'loss.png', 'reconstructions_worst.png'}
  assert figures >= expected
  assert networks & figures == (set() if name == 'kmeans' else networks)
  page = (tmp_path / 'report.html').read_text()
  assert f'{summary["test"]["ari"]:.4f}' in page
  assert f'--config=configs/{name}.py:digits' in page
  records = [
    json.loads(line)
    for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  losses = [r for r in records if r['phase'] == 'autoencoder']
  assert [r['epoch'] for r in losses] == ([] if name == 'kmeans' else [1, 2])
  clusterer = 'gmm' if name == 'gmm' else 'kmeans'
  restarts = [r['restarts'] for r in records if r['phase'] == clusterer]
  last = np.array(restarts[-1][-1])
  score = 'log_likelihood' if name == 'gmm' else 'inertia'
  best = last.max() if name == 'gmm' else last.min()
  np.testing.assert_allclose(best, summary['fit'][score], rtol=1e-4)
  config = read(tmp_path, 'config.json')
  assert config['data']['name'] == 'digits'
  check_that_the_loaded_run_finds_the_same(tmp_path, name == 'gmm')


def check_that_the_loaded_run_finds_the_same(path, is_mixture):
  """Bit for bit, and with no data but those given."""
  model, digits = jaxclust.load(path), data.load('digits')
  with np.load(path / 'assignments.npz') as arrays:
    for split, images in (
      ('train', digits.images),
      ('test', digits.test_images),
    ):
      labels = model.predict(images)
      np.testing.assert_array_equal(
        labels, arrays[f'{split}_labels'], strict=True
      )
      if is_mixture:
        np.testing.assert_array_equal(
          model.responsibilities(images),
          arrays[f'{split}_responsibilities'],
          strict=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize('name', PIPELINES)
def test_a_finished_run_predicts(name, tmp_path, capfd):
  assert run(name, tmp_path / 'run', *SMALL[name]) == 0
  flags = [f'--config.run={tmp_path}/run', *SMALL['predict']]
  assert run('predict', tmp_path / 'new', *flags) == 0
  assert 'ARI' in capfd.readouterr().out
  old, new = read(tmp_path / 'run'), read(tmp_path / 'new')
  for split in ('train', 'test'):
    assert new[split] == old[split]
  assert new['run'] == str(tmp_path / 'run')
  rows = table(tmp_path / 'new')
  assert [row['file'] for row in rows[1347:1350]] == [
    *('train/1347', 'test/0', 'test/1')
  ]
  found = [int(row['cluster']) for row in rows]
  with np.load(tmp_path / 'run' / 'assignments.npz') as arrays:
    labels = [arrays['train_labels'], arrays['test_labels']]
    np.testing.assert_array_equal(found, np.concatenate(labels))
  assert all(0 <= float(row['confidence']) <= 1 for row in rows)
  assert all(float(row['distance']) >= 0 for row in rows)
  assert (tmp_path / 'new' / 'figures' / 'gallery.png').stat().st_size > 5000
  page = (tmp_path / 'new' / 'report.html').read_text()
  assert f'by the run {tmp_path}/run.' in page
  assert 'typical members of cluster 9' in page
  program = (tmp_path / 'new' / 'model.jaxexport').read_bytes()
  images = data.load('digits').test_images[:9]
  np.testing.assert_array_equal(
    jax.export.deserialize(bytearray(program)).call(images), labels[1][:9]
  )


def table(path):
  with open(path / 'predictions.csv', newline='') as file:
    return list(csv.DictReader(file))


def draw_folder(path, colors, sizes):
  """PNGs that are red, green, blue or grey, in a sub-folder for each colour,
  of sizes that take turns."""
  rng = np.random.default_rng(0)
  for color in colors:
    (path / color).mkdir(parents=True)
    for row in range(8):
      height, width = sizes[row % len(sizes)]
      image = rng.integers(0, 60, (height, width, 3), np.uint8)
      if color == 'grey':
        image = image[..., 0]
      else:
        image[..., ('red', 'green', 'blue').index(color)] += 180
      Image.fromarray(image).save(path / color / f'{row}.png')
  return path


def test_a_folder_of_colours_and_sizes_is_clustered_and_predicted(
  tmp_path, capfd
):
  colors, sizes = ('red', 'green', 'blue'), ((6, 5), (9, 9), (4, 7))
  folder = draw_folder(tmp_path / 'old', colors, sizes)
  flags = ['--config.kmeans.num_clusters=3', '--config.kmeans.num_restarts=4']
  flags += [f'--config.data.name={folder}']
  assert run('kmeans', tmp_path / 'run', *flags) == 2
  message = capfd.readouterr().err
  size = re.search(r'(--config.data.size=\(\d, \d\))\n', message)[1]
  assert run('kmeans', tmp_path / 'run', *flags, size) == 0
  assert read(tmp_path / 'run')['train']['ari'] == 1
  shutil.rmtree(folder)  # the data are not needed any more
  folder = draw_folder(tmp_path / 'new', ('blue', 'grey', 'red'), ((12, 8),))
  flags = [f'--config.run={tmp_path}/run', f'--config.data.name={folder}']
  assert run('predict', tmp_path / 'found', *flags) == 0
  rows = table(tmp_path / 'found')
  assert [row['file'] for row in rows[7:9]] == ['blue/7.png', 'grey/0.png']
  clusters = [row['cluster'] for row in rows]
  assert len(set(clusters[:8])) == len(set(clusters[16:])) == 1
  assert clusters[0] != clusters[16]
  strange = np.array([float(row['outlier_score']) for row in rows])
  assert strange[8:16].min() > np.delete(strange, range(8, 16)).max()
  scores = read(tmp_path / 'found')['images']
  assert 0.5 < scores['purity'] < 1
  assert 'train' not in read(tmp_path / 'found')


def test_a_flat_folder_of_grey_needs_a_run_of_its_channels(tmp_path, capfd):
  folder = draw_folder(tmp_path / 'a', ('red',), ((8, 8),)) / 'red'
  assert run('kmeans', tmp_path / 'run', *SMALL['kmeans']) == 0
  flags = [f'--config.run={tmp_path}/run', f'--config.data.name={folder}']
  assert run('predict', tmp_path / 'found', *flags) == 2
  message = capfd.readouterr().err
  assert 'images have 3 channels, and 1 are needed: convert them' in message
  assert run('predict', tmp_path / 'found', *flags, '--config.data.size=5') == 2
  message = capfd.readouterr().err
  assert 'run takes images of (8, 8): leave it out' in message
  assert not (tmp_path / 'found').exists()
  for file in folder.iterdir():
    Image.open(file).convert('L').convert('RGB').save(file)
  assert run('predict', tmp_path / 'found', *flags) == 0
  assert 'predictions.csv tells' in capfd.readouterr().out
  assert not {'images', 'train'} & read(tmp_path / 'found').keys()
  assert len(table(tmp_path / 'found')) == 8


@pytest.mark.slow
def test_a_sweep_tells_what_each_criterion_chooses(tmp_path, capfd):
  assert run('sweep', tmp_path, *SMALL['sweep']) == 0
  out = capfd.readouterr().out
  assert '* the choice of the criterion' in out
  summary = read(tmp_path)
  assert [r['num_clusters'] for r in summary['sweep']] == [1, 3, 2]
  alone, *others = summary['sweep']
  assert alone['silhouette'] is None
  assert alone['stability'] is None
  for record in others:
    assert 0 < record['silhouette'] < 1
    assert -0.5 < record['stability'] <= 1
    assert record['bic'] > record['aic']
    assert record['inertia'] < alone['inertia']
  assert set(summary['choices'].values()) <= {1, 2, 3}
  assert (tmp_path / 'figures' / 'sweep.png').stat().st_size > 10_000
  records = workdir.read_log(tmp_path, phase='sweep')
  assert [r['num_clusters'] for r in records] == [1, 3, 2]


@pytest.mark.slow
def test_a_benchmark_writes_what_it_measured(tmp_path, capfd):
  assert run('benchmark', tmp_path, *SMALL['benchmark']) == 0
  assert 'scikit-learn' in capfd.readouterr().out
  results = read(tmp_path, 'benchmark.json')
  assert results['versions'] == read(tmp_path)['versions']
  assert results['limits']['operations_per_second'] > 1e6
  *rows, epoch = results['rows']
  assert len(rows) == 4
  assert 'scikit-learn' not in epoch['ratio']
  assert all('scikit-learn' in row['ratio'] for row in rows)
  assert results['peers']['sklearn'] == results['versions']['scikit-learn']
  for row in results['rows']:
    assert row['objective']['jaxclust'] != 0
    for ratio in row['ratio'].values():
      assert 0 < ratio['least'] <= ratio['largest']
    assert all(len(seconds) == 2 for seconds in row['seconds'].values())
  assert (tmp_path / 'figures' / 'benchmark.png').stat().st_size > 10_000


def test_a_benchmark_of_different_results_ends(tmp_path, capfd, monkeypatch):
  def measure(contest, rounds, limits):
    raise benchmark.MismatchError('the row: the peer ended elsewhere')

  monkeypatch.setattr(benchmark, 'measure', measure)
  assert run('benchmark', tmp_path, *SMALL['benchmark']) == 3
  error = capfd.readouterr().err
  assert error == 'error: the row: the peer ended elsewhere\n'


def test_a_finished_run_is_left_alone(tmp_path, capfd):
  assert run('kmeans', tmp_path, *SMALL['kmeans']) == 0
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  capfd.readouterr()
  assert run('kmeans', tmp_path, *SMALL['kmeans']) == 0
  assert 'already finished' in capfd.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  assert after == before


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
  flags = ['--config.training.num_epochs=5', '--config.gmm.tol=1e-4']
  assert run('gmm', tmp_path / 'whole', *flags) == 0
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(fitting, '_MOST_STEPS', 4)
  # Each stop is a process that dies right after a checkpoint.
  for phase, step in (('autoencoder', 3 * 22), ('gmm-0', 8), ('gmm-0', 12)):
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, 'save', dying(checkpoints.save, phase, step))
      with pytest.raises(KeyboardInterrupt):
        run('gmm', tmp_path / 'stopped', *flags)
  assert run('gmm', tmp_path / 'stopped', *flags) == 0
  whole, stopped = (read(tmp_path / d) for d in ('whole', 'stopped'))
  for summary in (whole, stopped):
    del summary['seconds']
  assert whole == stopped
  epochs = workdir.read_log(tmp_path / 'stopped', phase='autoencoder')
  assert [r['epoch'] for r in epochs] == [1, 2, 3, 4, 5]
  records = workdir.read_log(tmp_path / 'stopped', phase='gmm')
  steps = [r['step'] for r in records]
  assert steps[:4] == [4, 8, 12, 16]
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


def test_a_training_that_diverges_ends_with_status_3(tmp_path, capfd):
  flags = ['--config.training.learning_rate=1e30']
  assert run('gmm', tmp_path, *flags) == 3
  message = capfd.readouterr().err
  assert 'lower config.training.learning_rate' in message
  assert not (tmp_path / 'summary.json').exists()


def test_a_training_that_diverges_keeps_what_it_has_saved(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  sum_losses = fitting.training.sum_losses
  losses = iter([None, None, np.array([np.nan])])

  def diverging(*args, **options):
    loss = next(losses)
    return sum_losses(*args, **options) if loss is None else loss

  monkeypatch.setattr(fitting.training, 'sum_losses', diverging)
  assert run('gmm', tmp_path) == 3
  assert 'checkpoint of step 44 stands' in capfd.readouterr().err
  kept = tmp_path / 'checkpoints' / 'autoencoder'
  steps = sorted(p.name for p in kept.iterdir() if p.is_dir())
  assert steps == ['22', '44']


def test_a_full_disk_ends_with_a_message_and_loses_nothing(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  save = checkpoints.save

  def fill(path, phase, step, state):
    if step > 22:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save(path, phase, step, state)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, 'save', fill)
    assert run('gmm', tmp_path, *SMALL['gmm']) == 3
  message = capfd.readouterr().err
  assert 'cannot be written (No space left on device): make room' in message
  assert message.count('\n') == 1
  assert run('gmm', tmp_path, *SMALL['gmm']) == 0


def test_who_has_told_xla_the_number_of_devices_is_heard():
  code = (
    'import jax; from jaxclust import experiments\n'
    'experiments._use_all_cores(); print(jax.device_count())'
  )
  flags = '--xla_force_host_platform_device_count=3'
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == '3\n'


def test_configs_that_train_train_alike():
  """What a sweep explains is the network of the pipelines."""
  names = ('gmm', 'ae_kmeans', 'sweep')
  for variant in ('fashion_mnist', 'digits'):
    configs = [cli._load(f'configs/{name}.py:{variant}') for name in names]
    first, *others = [config.training.to_dict() for config in configs]
    assert all(other == first for other in others)


@pytest.mark.slow
def test_each_of_several_seeds_is_a_run_of_its_own(tmp_path, capfd):
  flags = [*SMALL['gmm'], '--config.seed=5']
  assert run('gmm', tmp_path / 'all', '--config.num_seeds=2', *flags) == 0
  out = capfd.readouterr().out
  assert 'gmm, 2 seeds' in out
  assert '±' in out
  summary = read(tmp_path / 'all')
  rows = summary['seeds']
  assert [row['seed'] for row in rows] == [5, 6]
  for row in rows:
    path = tmp_path / str(row['seed'])
    assert run('gmm', path, *flags, f'--config.seed={row["seed"]}') == 0
    alone = read(path)
    for key in ('train', 'test', 'fit', 'autoencoder'):
      assert row[key] == alone[key]
    assert 'seeds' not in alone
  values = [row['test']['ari'] for row in rows]
  assert summary['mean']['test']['ari'] == np.mean(values)
  assert summary['std']['test']['ari'] == np.std(values)
  assert summary['test'] == rows[0]['test']
  purities = [sorted(row['train']['cluster_purity']) for row in rows]
  np.testing.assert_allclose(
    summary['mean']['train']['cluster_purity'], np.mean(purities, axis=0)
  )
  with (
    np.load(tmp_path / 'all' / 'assignments.npz') as first,
    np.load(tmp_path / '5' / 'assignments.npz') as alone,
  ):
    for key in alone:
      np.testing.assert_array_equal(first[key], alone[key])


@pytest.mark.slow
def test_all_that_training_can_do_at_once(tmp_path):
  flags = [
    '--config.training.num_epochs=3',
    '--config.training.schedule=cosine',
    '--config.training.warmup_epochs=1',
    '--config.training.clip_norm=1.0',
    '--config.training.noise=0.2',
    '--config.training.max_shift=1',
    '--config.training.max_rotation=10',
    '--config.training.patience=2',
    '--config.training.dtype=bfloat16',
    '--config.training.placement=host',
    '--config.gmm.num_restarts=1',
  ]
  assert run('gmm', tmp_path, *flags) == 0
  summary = read(tmp_path)
  assert summary['train']['ari'] > 0.2
  assert 1 <= summary['autoencoder']['epoch'] <= 3


@pytest.mark.slow
def test_a_code_is_standardized_on_request(tmp_path):
  plain, standard = tmp_path / 'plain', tmp_path / 'standard'
  assert run('ae_kmeans', plain, *SMALL['ae_kmeans']) == 0
  flags = ['--config.standardize=True', *SMALL['ae_kmeans']]
  assert run('ae_kmeans', standard, *flags) == 0
  # 1,348 points of 32 numbers, but for those that never vary.
  inertia = read(standard)['fit']['inertia']
  assert 0.2 * 1348 * 32 < inertia < 1348 * 32
  assert read(plain)['fit']['inertia'] != inertia
  check_that_the_loaded_run_finds_the_same(standard, is_mixture=False)


def test_floats_for_the_autoencoder_are_from_0_to_1(tmp_path, capfd):
  images = np.random.default_rng(0).normal(size=(60, 6, 7)).astype(np.float32)
  np.savez(tmp_path / 'mine.npz', images=images)
  flags = [f'--config.data.name={tmp_path}/mine.npz', *SMALL['ae_kmeans']]
  assert run('ae_kmeans', tmp_path / 'run', *flags) == 2
  assert 'takes floats from 0 to 1' in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_labels_and_a_test_split_are_not_needed(tmp_path, capfd):
  images = np.random.default_rng(0).integers(0, 256, (60, 6, 7), np.uint8)
  np.savez(tmp_path / 'mine.npz', images=images)
  flags = [f'--config.data.name={tmp_path}/mine.npz', *SMALL['ae_kmeans']]
  assert run('ae_kmeans', tmp_path / 'run', *flags) == 0
  out = capfd.readouterr().out
  assert 'silhouette' in out
  assert 'stability' in out
  summary = read(tmp_path / 'run')
  assert not {'train', 'test'} & summary.keys()
  assert -1 < summary['fit']['silhouette'] < 1
  assert -0.5 < summary['fit']['stability'] <= 1
  assert summary['dataset']['image_shape'] == [6, 7, 1]


def test_a_score_that_one_seed_lacks_is_of_the_others(
  tmp_path, capfd, monkeypatch
):
  images = np.random.default_rng(0).integers(0, 256, (60, 6, 7), np.uint8)
  np.savez(tmp_path / 'mine.npz', images=images)
  found = iter([np.array([np.nan]), np.array([0.25])])
  monkeypatch.setattr(selection, 'silhouette', lambda *_: next(found))
  monkeypatch.setattr(experiments.page, 'draw', lambda *_: [])
  flags = [f'--config.data.name={tmp_path}/mine.npz']
  flags += ['--config.kmeans.num_restarts=1']
  assert run('kmeans', tmp_path / 'a', '--config.num_seeds=2', *flags) == 0
  assert '1 of 2 seeds' in capfd.readouterr().out
  summary = read(tmp_path / 'a')
  assert 'silhouette' not in summary['seeds'][0]['fit']
  assert summary['mean']['fit']['silhouette'] == 0.25
  assert '1 of 2 seeds' in (tmp_path / 'a' / 'report.html').read_text()


def test_warnings_are_shown_and_recorded(tmp_path, capfd):
  flags = ['--config.kmeans.max_steps=1', *SMALL['kmeans']]
  assert run('kmeans', tmp_path, *flags) == 0
  assert 'warning: k-means did not converge' in capfd.readouterr().out
  assert 'did not converge' in read(tmp_path)['warnings'][0]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config=configs/gmm.py:digits', '--config.sed=1'],
      'there is no config.sed: did you mean config.seed?',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.gm.reg=1'],
      'did you mean config.gmm.reg?',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.seed.x=1'],
      'did you mean config.seed?',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.autoencoder.features[9]=1'],
      'did you mean config.autoencoder.features?',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.seed=1.5'],
      "config.seed is '1.5': it must be a whole number",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.gmm.reg=much'],
      "config.gmm.reg is 'much': it must be a number",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.standardize=maybe'],
      "config.standardize is 'maybe': it must be true or false",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.training=3'],
      "config.training is '3': it must be a group",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.seed'],
      'Missing value for flag --config.seed',
    ),
    (['--config=configs/gmm.py:digits', '--wokdir=x'], '--workdir?'),
    (['--config=configs/gmm.py:digits', '-x'], 'there is no flag --x'),
    (['--config=configs/gmm.py:digits', '--', 'x'], "'x' belongs to no flag"),
    (['--config=README.md'], "there is no config 'README.md'"),
    (['--config=configs'], "there is no config 'configs'"),
    (['--config=tests/conftest.py'], 'gives no config (AttributeError'),
    (['--config=configs/gmm.py:digits', 'stray'], "'stray' belongs to no"),
    (['--config=configs/gmm.py:digts'], "variant is 'digts'"),
    (
      ['--config=configs/gm.py'],
      "no config 'configs/gm.py': did you mean configs/gmm.py?",
    ),
    ([], 'add --config=FILE'),
    (
      [
        '--config=configs/kmeans.py:digits',
        '--config.kmeans.num_clusters=2000',
      ],
      'num_clusters is 2000, but x has only 1348 rows',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.seed=-1'],
      'config.seed is -1',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.num_seeds=0'],
      'config.num_seeds is 0',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.training.placement=disk'],
      "placement is 'disk'",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.training.noise=-1.0'],
      'noise is -1',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.gmm.covariance=ful'],
      "covariance is 'ful'",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.training.batch_size=0'],
      'batch_size is 0',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.autoencoder.features=(0,)'],
      'each of features is 0',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.experiment=gm'],
      "config.experiment is 'gm'",
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.data.name=digitz'],
      'digits',
    ),
    (
      ['--config=configs/gmm.py:digits', '--config.data.size=(8, 8, 1)'],
      'config.data.size is (8, 8, 1)',
    ),
    (['--config=configs/predict.py:digits'], "the run '' is no directory"),
    (
      ['--config=configs/predict.py:digits', '--config.run=tests'],
      'tests holds no finished run',
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


def test_a_directory_that_cannot_be_used_is_told_before_data_are_read(
  tmp_path, capfd, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setattr(experiments.data, 'load', None)
  assert run('kmeans', tmp_path / 'file') == 2
  assert 'cannot be written' in capfd.readouterr().err


def test_an_unexpected_error_leaves_its_traceback_in_the_directory(
  tmp_path, capfd, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(experiments.fitting, 'cluster', lambda *args: {}['gone'])
    assert run('kmeans', tmp_path) == 3
  error = capfd.readouterr().err
  assert error.startswith("error: unexpected KeyError ('gone'): its traceback")
  assert error.count('\n') == 1
  kept = (tmp_path / 'error.log').read_text()
  assert 'Traceback (most recent call last)' in kept
  assert "KeyError: 'gone'" in kept
  assert run('kmeans', tmp_path) == 0


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
@pytest.mark.parametrize('name', ['gmm', 'sweep'])
def test_a_run_needs_no_other_framework_and_writes_plain_lines(name, tmp_path):
  flags = [f'--config=configs/{name}.py:digits', *SMALL[name]]
  done = subprocess.run(
    [sys.executable, '-c', ALONE, *flags, f'--workdir={tmp_path}/run'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  told = done.stdout + done.stderr
  assert told.count('\n') > 10
  assert all(c.isprintable() or c == '\n' for c in told)


def test_own_data_name_the_directory_and_are_compared_with_no_other(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.chdir(tmp_path)
  images = np.random.default_rng(0).integers(0, 256, (60, 6, 7), np.uint8)
  np.savez(tmp_path / 'mine.npz', images=images, labels=np.arange(60) % 3)
  config = f'--config={ROOT}/configs/kmeans.py'
  data = f'--config.data.name={tmp_path}/mine.npz'
  assert launch.main(['launch.py', config, data, *SMALL['kmeans']]) == 0
  (path,) = (tmp_path / 'runs').iterdir()
  assert path.name.startswith('kmeans-mine-')
  published = '0.3476'
  assert published in (ROOT / 'configs' / 'kmeans.py').read_text()
  assert published not in capfd.readouterr().out


def test_the_flagship_on_digits_reaches_its_mark(tmp_path):
  assert run('gmm', tmp_path) == 0
  assert read(tmp_path)['train']['ari'] >= 0.45


def test_the_main_run_is_clean_under_debug_nans(tmp_path):
  with jax.debug_nans(True):
    assert run('gmm', tmp_path, *SMALL['gmm']) == 0


@pytest.mark.slow
@pytest.mark.skipif(
  'JAXCLUST_RAW_DIR' not in os.environ,
  reason='$JAXCLUST_RAW_DIR does not name the files of Fashion-MNIST',
)
def test_an_epoch_of_fashion_mnist_and_its_mixture(tmp_path):
  status = launch.main(
    [
      'launch.py',
      '--config=configs/gmm.py',
      f'--workdir={tmp_path}/run',
      f'--config.data.dir={tmp_path}/tfds',
      '--config.training.num_epochs=1',
      '--config.gmm.num_restarts=1',
      '--config.gmm.max_steps=10',
    ]
  )
  assert status == 0
  summary = read(tmp_path / 'run')
  assert summary['dataset']['num_train'] == 60_000
  assert summary['train']['ari'] > 0.25
  assert summary['test']['ari'] > 0.25

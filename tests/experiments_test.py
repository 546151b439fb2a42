"""Every config from end to end: the files of a run, and what they say."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import time

import jax
import jax.export
import numpy as np
import pytest
from image_sets import count_rows, read_idx
from small_runs import (
  PIPELINES,
  ROOT,
  SMALL,
  Finished,
  draw_npz,
  read,
  run,
  table,
)

import jaxclust
import launch
from jaxclust import commands, data, pipeline, selection, workdir

STAGES = {
  'kmeans': (),
  'ae_kmeans': ('autoencoder',),
  'gmm': ('autoencoder',),
  'dec': ('autoencoder', 'dec'),
  'prototypes': ('prototypes',),
}
CLUSTERERS = {'kmeans': 'kmeans', 'ae_kmeans': 'kmeans', 'gmm': 'gmm'}
SLOW = [
  name if name == 'kmeans' else pytest.param(name, marks=pytest.mark.slow)
  for name in PIPELINES
]


def test_every_config_is_run_here():
  configs = {p.stem for p in (ROOT / 'configs').glob('*.py')}
  assert configs == {*SMALL, 'compare', 'report'}


def check_figures(path, name):
  figures = {p.name for p in (path / 'figures').iterdir()}
  assert figures >= {'confusion.png', 'purity.png', 'sizes.png'}
  assert ('loss.png' in figures) == bool(STAGES[name])
  decodes = 'autoencoder' in STAGES[name]
  assert ('reconstructions_worst.png' in figures) == decodes
  assert ('views.png' in figures) == (name == 'prototypes')
  assert ('convergence.png' in figures) == (name in CLUSTERERS)


def check_log(path, name):
  records = [
    json.loads(line)
    for line in (path / 'metrics.jsonl').read_text().splitlines()
  ]
  for stage in ('autoencoder', 'dec', 'prototypes'):
    epochs = [r['epoch'] for r in records if r['phase'] == stage]
    assert epochs == ([1, 2] if stage in STAGES[name] else [])
  if name not in CLUSTERERS:
    return
  fit = read(path)['fit']
  assert fit['stop_reason'] == 'converged'
  restarts = [r['restarts'] for r in records if r['phase'] == CLUSTERERS[name]]
  last = np.array(restarts[-1][-1])
  score = 'log_likelihood' if name == 'gmm' else 'inertia'
  best = last.max() if name == 'gmm' else last.min()
  np.testing.assert_allclose(best, fit[score], rtol=1e-4)


@pytest.mark.parametrize('name', SLOW)
def test_a_config_runs_from_end_to_end(name, finished):
  path, out = finished(name)
  lines = out.splitlines()
  assert lines[-1] == os.path.relpath(path / 'report.html')
  assert any('ARI' in line for line in lines)
  assert '\x1b' not in out
  summary = read(path)
  config = commands.load(f'{ROOT}/configs/{name}.py:digits')
  assert summary['experiment'] == pipeline.title(config)
  assert summary['dataset']['num_train'] == 1348
  assert summary['dataset']['num_test'] == 449
  for split in ('train', 'test'):
    scores = summary[split]
    assert 0 < scores['ari'] < 1
    assert len(scores['cluster_purity']) == 10
  assert 'data' in summary['seconds']
  assert read(path, 'config.json')['data']['name'] == 'digits'
  with np.load(path / 'assignments.npz') as arrays:
    assert arrays['train_labels'].shape == (1348,)
    assert arrays['test_labels'].dtype == np.int32
    if name in ('gmm', 'dec', 'prototypes'):
      shares = arrays['test_responsibilities']
      np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
      np.testing.assert_array_equal(
        shares.argmax(axis=1), arrays['test_labels']
      )
  page = (path / 'report.html').read_text()
  assert f'{summary["test"]["ari"]:.4f}' in page
  assert f'configs/{name}.py:digits' in page
  check_figures(path, name)
  check_log(path, name)


@pytest.mark.parametrize('name', SLOW)
def test_a_loaded_run_finds_what_the_run_has_found_end_to_end(name, finished):
  check_that_the_loaded_run_finds_the_same(finished(name).path)


def check_that_the_loaded_run_finds_the_same(path):
  """Bit for bit, and with no data but those given."""
  own = jaxclust.load(path)
  digits = data.load('digits', size=own.image_shape[:2])
  with np.load(path / 'assignments.npz') as arrays:
    for split, images in (
      ('train', digits.images),
      ('test', digits.test_images),
    ):
      found = {'labels': own.predict(images)}
      if f'{split}_responsibilities' in arrays:
        found['responsibilities'] = own.responsibilities(images)
      for what, array in found.items():
        np.testing.assert_array_equal(
          array, arrays[f'{split}_{what}'], strict=True
        )


def redraw(*flags):
  config = f'--config={ROOT}/configs/report.py'
  return launch.main(['launch.py', config, *flags])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['kmeans', 'gmm'])
def test_a_finished_run_is_drawn_again(name, finished, tmp_path, capfd):
  path = tmp_path / 'run'
  shutil.copytree(finished(name).path, path)
  kept = [file for file in path.iterdir() if file.is_file()]
  before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in kept}
  drawn = {file.name for file in (path / 'figures').iterdir()}
  shutil.rmtree(path / 'figures')
  (path / 'report.html').unlink()
  assert redraw(f'--config.run={path}') == 0
  assert {file.name for file in (path / 'figures').iterdir()} == drawn
  page = (path / 'report.html').read_text()
  assert page == (finished(name).path / 'report.html').read_text()
  before.pop(path / 'report.html')
  after = {
    file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before
  }
  changed = {file.name for file in before if after[file] != before[file]}
  assert changed <= {'.lock'}
  assert 'warning' not in capfd.readouterr().out


def test_only_a_finished_run_is_drawn_again(tmp_path, capsys):
  assert redraw(f'--config.run={tmp_path}') == 2
  assert 'must be the directory of a finished run' in capsys.readouterr().err
  (tmp_path / 'summary.json').write_text('{}')
  assert redraw(f'--config.run={tmp_path}', f'--workdir={tmp_path}') == 2
  assert 'leave workdir out' in capsys.readouterr().err
  assert redraw(f'--config.run={tmp_path}') == 2
  assert 'config.json cannot be read' in capsys.readouterr().err
  (tmp_path / 'config.json').write_text('{"experiment": "sweep"}')
  assert redraw(f'--config.run={tmp_path}') == 2
  assert 'a sweep run, which keeps too little' in capsys.readouterr().err


@pytest.mark.parametrize('name', SLOW)
def test_a_finished_run_predicts(name, finished, tmp_path, capfd):
  path = finished(name).path
  flags = [f'--config.run={path}', *SMALL['predict']]
  assert run('predict', tmp_path, *flags) == 0
  assert 'ARI' in capfd.readouterr().out
  old, new = read(path), read(tmp_path)
  for split in ('train', 'test'):
    assert new[split] == old[split]
  assert new['run'] == str(path)
  rows = table(tmp_path)
  assert [row['file'] for row in rows[1347:1350]] == [
    *('train/1347', 'test/0', 'test/1')
  ]
  found = [int(row['cluster']) for row in rows]
  with np.load(path / 'assignments.npz') as arrays:
    labels = [arrays['train_labels'], arrays['test_labels']]
    np.testing.assert_array_equal(found, np.concatenate(labels))
  assert all(0 <= float(row['confidence']) <= 1 for row in rows)
  assert all(float(row['distance']) >= 0 for row in rows)
  assert (tmp_path / 'figures' / 'gallery.png').stat().st_size > 5000
  page = (tmp_path / 'report.html').read_text()
  assert f'by the run {path}.' in page
  assert 'typical members of cluster 9' in page
  program = (tmp_path / 'model.jaxexport').read_bytes()
  size = jaxclust.load(path).image_shape[:2]
  images = data.load('digits', size=size).test_images[:9]
  np.testing.assert_array_equal(
    jax.export.deserialize(bytearray(program)).call(images), labels[1][:9]
  )


@pytest.fixture(scope='module')
def unlabelled(tmp_path_factory):
  """A run of images without labels and without a test split."""
  folder, out = tmp_path_factory.mktemp('unlabelled'), io.StringIO()
  flags = [draw_npz(folder / 'mine.npz'), *SMALL['ae_kmeans']]
  with contextlib.redirect_stdout(out):
    assert run('ae_kmeans', folder / 'run', *flags) == 0
  return Finished(folder / 'run', out.getvalue())


def test_network_and_optimizer_are_chosen_by_values_alone(unlabelled):
  own = jaxclust.load(unlabelled.path)
  assert own.recipe['network'] == {'name': 'mlp', 'features': [16, 5]}
  assert own.centers.shape == (10, 5)
  training = read(unlabelled.path, 'config.json')['training']
  assert training['optimizer'] == 'sgd'


@pytest.mark.slow
def test_idec_is_dec_with_weights(tmp_path):
  flags = ['--config.dec.divergence=.1', '--config.dec.reconstruction=1.']
  assert run('dec', tmp_path, *SMALL['dec'], *flags) == 0
  options = jaxclust.load(tmp_path).recipe['method_options']
  assert (options['divergence'], options['reconstruction']) == (0.1, 1.0)
  (first, last) = workdir.read_log(tmp_path, phase='dec')
  assert last['train_loss'] < first['train_loss']
  check_that_the_loaded_run_finds_the_same(tmp_path)


def test_configs_that_train_train_alike():
  for variant in ('fashion_mnist', 'digits'):
    configs = [
      commands.load(f'configs/{n}.py:{variant}') for n in ('gmm', 'ae_kmeans')
    ]
    first, other = [(c.training.to_dict(), c.network) for c in configs]
    assert other == first


@pytest.mark.slow
def test_each_of_several_seeds_is_a_run_of_its_own(tmp_path, capfd):
  flags = [*SMALL['gmm'], '--config.seed=5']
  assert run('gmm', tmp_path / 'all', '--config.num_seeds=2', *flags) == 0
  out = capfd.readouterr().out
  assert 'autoencoder-gmm, 2 seeds' in out
  assert '±' in out
  summary = read(tmp_path / 'all')
  rows = summary['seeds']
  assert [row['seed'] for row in rows] == [5, 6]
  second = tmp_path / 'second'
  assert run('gmm', second, *flags, '--config.seed=6') == 0
  alone = read(second)
  for key in ('train', 'test', 'fit', 'autoencoder'):
    assert rows[1][key] == alone[key]
  assert 'seeds' not in alone
  values = [row['test']['ari'] for row in rows]
  assert summary['mean']['test']['ari'] == np.mean(values)
  assert summary['std']['test']['ari'] == np.std(values)
  assert summary['test'] == rows[0]['test']
  purities = [sorted(row['train']['cluster_purity']) for row in rows]
  np.testing.assert_allclose(
    summary['mean']['train']['cluster_purity'], np.mean(purities, axis=0)
  )
  assert 0 < summary['vote']['test']['ari'] < 1
  assert len(summary['vote']['criteria']['agreement']) == 2
  assert '\n  vote ' in out
  with np.load(tmp_path / 'all' / 'assignments.npz') as arrays:
    assert arrays['test_vote'].shape == arrays['test_labels'].shape
    first, last = arrays['train_seeds']
    np.testing.assert_array_equal(first, arrays['train_labels'])
  with np.load(second / 'assignments.npz') as arrays:
    np.testing.assert_array_equal(last, arrays['train_labels'])


@pytest.mark.slow
def test_all_that_training_can_do_at_once(tmp_path):
  flags = [
    *SMALL['ae_kmeans'],
    '--config.network.features=(64, 10)',
    '--config.training.num_epochs=20',
    '--config.training.optimizer=adam',
    '--config.training.learning_rate=1e-2',
    '--config.training.schedule=cosine',
    '--config.training.warmup_epochs=1',
    '--config.training.clip_norm=1.0',
    '--config.training.noise=0.2',
    '--config.training.max_shift=1',
    '--config.training.max_rotation=10',
    '--config.training.patience=2',
    '--config.training.dtype=bfloat16',
    '--config.training.placement=host',
  ]
  assert run('ae_kmeans', tmp_path, *flags) == 0
  records = workdir.read_log(tmp_path, phase='autoencoder')
  losses = [record['val_loss'] for record in records]
  assert min(losses) < 0.7 * losses[0]
  epoch = read(tmp_path)['autoencoder']['epoch']
  assert losses[epoch - 1] == min(losses)


@pytest.mark.slow
def test_a_code_is_standardized_on_request(tmp_path, finished):
  flags = ['--config.standardize=True', *SMALL['ae_kmeans']]
  assert run('ae_kmeans', tmp_path, *flags) == 0
  # 1,348 points of 5 numbers, but for those that never vary.
  inertia = read(tmp_path)['fit']['inertia']
  assert 0.1 * 1348 * 5 < inertia < 1348 * 5
  assert read(finished('ae_kmeans').path)['fit']['inertia'] != inertia
  check_that_the_loaded_run_finds_the_same(tmp_path)


def test_floats_for_a_network_are_from_0_to_1(tmp_path, capfd):
  images = np.random.default_rng(0).normal(size=(60, 6, 7)).astype(np.float32)
  flags = [draw_npz(tmp_path / 'mine.npz', images=images)]
  assert run('ae_kmeans', tmp_path / 'run', *flags) == 2
  assert 'takes floats from 0 to 1' in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_labels_and_a_test_split_are_not_needed(unlabelled):
  assert 'silhouette' in unlabelled.out
  assert 'stability' in unlabelled.out
  summary = read(unlabelled.path)
  assert not {'train', 'test'} & summary.keys()
  assert -1 < summary['fit']['silhouette'] < 1
  assert -0.5 < summary['fit']['stability'] <= 1
  assert summary['dataset']['image_shape'] == [6, 7, 1]


def test_a_score_that_one_seed_lacks_is_of_the_others(
  tmp_path, capfd, monkeypatch
):
  found = iter([np.array([np.nan]), np.array([0.25])])
  monkeypatch.setattr(selection, 'silhouette', lambda *_: next(found))
  monkeypatch.setattr(pipeline.page, 'draw', lambda *_: [])
  flags = [draw_npz(tmp_path / 'mine.npz'), '--config.kmeans.num_restarts=1']
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


def test_own_data_name_the_directory_and_are_compared_with_no_other(
  tmp_path, monkeypatch, capfd
):
  monkeypatch.chdir(tmp_path)
  config = f'--config={ROOT}/configs/kmeans.py'
  flags = [draw_npz(tmp_path / 'mine.npz', labels=np.arange(60) % 3)]
  flags += SMALL['kmeans']
  assert launch.main(['launch.py', config, *flags]) == 0
  (path,) = (tmp_path / 'runs').iterdir()
  assert path.name.startswith('kmeans-mine-')
  published = '0.3476'
  assert published in (ROOT / 'configs' / 'kmeans.py').read_text()
  assert published not in capfd.readouterr().out


@pytest.mark.slow
def test_convolutions_on_digits_reach_their_mark_under_debug_nans(tmp_path):
  with jax.debug_nans(True):
    assert run('gmm', tmp_path, '--config.training.num_epochs=30') == 0
  assert read(tmp_path)['train']['ari'] >= 0.45


@pytest.mark.slow
@pytest.mark.skipif(
  'JAXCLUST_RAW_DIR' not in os.environ,
  reason='$JAXCLUST_RAW_DIR does not name the files of Fashion-MNIST',
)
def test_all_of_fashion_mnist_is_prepared_clustered_and_read_in_a_second(
  tmp_path, monkeypatch
):
  status = launch.main(
    [
      'launch.py',
      '--config=configs/kmeans.py',
      f'--workdir={tmp_path}/run',
      f'--config.data.dir={tmp_path}/tfds',
      '--config.kmeans.num_restarts=1',
      '--config.kmeans.max_steps=10',
    ]
  )
  assert status == 0
  summary = read(tmp_path / 'run')
  assert summary['dataset']['num_train'] == 60_000
  assert summary['train']['ari'] > 0.25
  assert summary['test']['ari'] > 0.25
  originals = pathlib.Path(os.environ['JAXCLUST_RAW_DIR'])
  monkeypatch.delenv('JAXCLUST_RAW_DIR')
  start = time.monotonic()
  dataset = data.load('fashion_mnist', dir=tmp_path / 'tfds')
  assert time.monotonic() - start < 1
  assert data.digest(dataset) == summary['dataset']['digest']
  for prefix, images, labels, total in (
    ('train', dataset.images, dataset.labels, 60000),
    ('t10k', dataset.test_images, dataset.test_labels, 10000),
  ):
    assert images.shape == (total, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(labels), total // 10)
    assert count_rows(images, labels) == count_rows(
      read_idx(originals / f'{prefix}-images-idx3-ubyte.gz', 3),
      read_idx(originals / f'{prefix}-labels-idx1-ubyte.gz', 1),
    )

"""Sweeps, benchmarks, leaderboards and committees from end to end."""

import signal

import numpy as np
import pytest
import scipy.stats
from small_runs import SMALL, draw_npz, read, run

import jaxclust
from jaxclust import (
  benchmark,
  checks,
  commands,
  data,
  records,
  selection,
  several,
  signals,
  workdir,
)
from jaxclust.benchmark import contest as contests
from jaxclust.benchmark.contest import OURS, Contest, Task

pytestmark = pytest.mark.usefixtures('light_compiler')


@pytest.mark.slow
def test_a_sweep_tells_what_each_criterion_chooses(finished):
  path, out = finished('sweep')
  assert '* the choice of the criterion' in out
  summary = read(path)
  assert [r['num_clusters'] for r in summary['sweep']] == [1, 3, 2]
  alone, *others = summary['sweep']
  assert alone['silhouette'] is None
  assert alone['stability'] is None
  for record in others:
    assert -1 < record['silhouette'] < 1
    assert 0 < record['strength'] <= 1
    assert -0.5 < record['stability'] <= 1
    assert record['bic'] > record['aic']
    assert record['inertia'] < alone['inertia']
  choices = summary['choices']
  assert choices.pop('strength') in (None, 2, 3)
  assert set(choices.values()) <= {1, 2, 3}
  assert alone['strength'] is None
  assert summary['conclusion'] in out.replace('\n', ' ')
  assert (path / 'figures' / 'sweep.png').stat().st_size > 10_000
  records = workdir.read_log(path, phase='sweep')
  assert [r['num_clusters'] for r in records] == [1, 3, 2]


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_numbers_not_tried(tmp_path, monkeypatch):
  flags = ['--config.stages=()', '--config.sweep.num_restarts=2']
  flags += [
    '--config.sweep.num_clusters=(2, 5, 3)',
    draw_npz(tmp_path / 'x.npz'),
  ]
  assert run('sweep', tmp_path / 'whole', *flags) == 0
  path, fit, counts = tmp_path / 'parts', selection._cluster, []

  def stop_at_the_second(key, x, num_clusters, *rest):
    counts.append(num_clusters)
    if num_clusters == 5 and counts.count(5) == 1:
      raise signals.Stopped(signal.SIGTERM)
    return fit(key, x, num_clusters, *rest)

  monkeypatch.setattr(selection, '_cluster', stop_at_the_second)
  assert run('sweep', path, *flags) == 128 + signal.SIGTERM
  tried = len(counts)
  assert run('sweep', path, *flags) == 0
  assert set(counts[:tried]) == {2, 5}
  assert set(counts[tried:]) == {5, 3}
  assert read(path)['sweep'] == read(tmp_path / 'whole')['sweep']

  (path / 'summary.json').unlink()  # a file that is lost is made again
  (path / 'sweep' / '3.npz').write_bytes(b'')
  tried = len(counts)
  assert run('sweep', path, *flags) == 0
  assert set(counts[tried:]) == {3}
  assert read(path)['sweep'] == read(tmp_path / 'whole')['sweep']


def test_warnings_that_differ_in_numbers_alone_are_told_once(capsys):
  with records.recorded_warnings() as messages:
    for count in (3, 12):
      checks.warn(f'{count} of 20 covariances are rank-deficient')
      checks.warn(f'EM did not converge in {count} steps')
    checks.warn('another')
    checks.warn('4 of 20 covariances are rank-deficient')
  assert messages == [
    '3 of 20 covariances are rank-deficient (and 2 more like this)',
    'EM did not converge in 3 steps (and 1 more like this)',
    'another',
  ]
  assert capsys.readouterr().out.splitlines() == [
    'warning: 3 of 20 covariances are rank-deficient',
    'warning: EM did not converge in 3 steps',
    'warning: another',
  ]


@pytest.mark.slow
def test_a_benchmark_writes_what_it_measured(finished):
  path, out = finished('benchmark')
  assert 'scikit-learn' in out
  results = read(path, 'benchmark.json')
  assert results['versions'] == read(path)['versions']
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
  assert (path / 'figures' / 'benchmark.png').stat().st_size > 10_000


def test_a_benchmark_of_different_results_ends(tmp_path, capfd, monkeypatch):
  def measure(*args, **options):
    raise benchmark.MismatchError('the row: the peer ended elsewhere')

  monkeypatch.setattr(benchmark, 'measure', measure)
  assert run('benchmark', tmp_path, *SMALL['benchmark']) == 3
  error = capfd.readouterr().err
  assert error == 'error: the row: the peer ended elsewhere\n'


def test_a_benchmark_goes_on_with_its_next_row(tmp_path, monkeypatch):
  measured, limits = [], iter([1e9, 1.0])

  def measure(contest, *options):
    measured.append((contest, options[-1]['operations_per_second']))
    if len(measured) == 2:
      raise benchmark.MismatchError('the second row')
    task = {OURS: Task(lambda: lambda: 1.0), 'peer': Task(lambda: lambda: 1.0)}
    size = {'points': len(measured), 'features': 2, 'clusters': 3}
    row = Contest(contest, task, 0.0, 1.0, 1.0, size)
    return contests.measure(row, *options)

  rows = [lambda key, images, name=name: name for name in ('a', 'b', 'c')]
  monkeypatch.setattr(benchmark, 'plan', lambda *args, **options: rows)
  monkeypatch.setattr(benchmark, 'measure', measure)
  monkeypatch.setattr(
    benchmark,
    'measure_limits',
    lambda size: dict.fromkeys(
      ('operations_per_second', 'bytes_per_second'), next(limits)
    ),
  )
  assert run('benchmark', tmp_path) == 3
  with open(tmp_path / 'metrics.jsonl', 'a') as log:
    log.write('{"phase": "benchm')  # as a kill leaves it
  assert run('benchmark', tmp_path) == 0
  logged = workdir.read_log(tmp_path, phase='benchmark')
  assert [row['name'] for row in logged] == ['a', 'b', 'c']
  assert measured == [(name, 1e9) for name in ('a', 'b', 'b', 'c')]
  found = read(tmp_path, 'benchmark.json')['rows']
  assert [(row['row'], row['name']) for row in found] == [
    (1, 'a'), (2, 'b'), (3, 'c')
  ]  # fmt: skip
  assert (tmp_path / 'figures' / 'scaling.png').stat().st_size > 10_000


@pytest.mark.slow
def test_a_leaderboard_has_a_run_for_each_method_and_goes_on(finished, capsys):
  path, out = finished('leaderboard')
  assert 'vade: autoencoder-vade' in out
  rows = read(path)['leaderboard']
  assert [row['name'] for row in rows] == ['dcn', 'vade', 'n2d']
  for row in rows:
    own = read(path / row['name'])
    for split in ('train', 'test'):
      for name, values in row[split].items():
        assert values == [own[split][name]]
    assert 0 < row['agreement'][0] < 1
    mean = f'{np.mean(row["train"]["acc"]):.3f}'
    assert mean in out
    assert mean in (path / 'report.html').read_text()
    assert (path / row['name'] / 'report.html').exists()
  assert (path / 'figures' / 'leaderboard.png').stat().st_size > 10_000
  before = (path / 'dcn' / 'summary.json').stat().st_mtime_ns
  (path / 'summary.json').rename(path / 'old.json')
  assert run('leaderboard', path, *SMALL['leaderboard']) == 0
  assert read(path)['leaderboard'] == rows
  assert (path / 'dcn' / 'summary.json').stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_committee_votes_goes_on_and_is_loaded(finished, capsys):
  path, out = finished('committee')
  assert 'outlines: prototypes' in out
  summary = read(path)
  names = [row['member'] for row in summary['members']]
  assert names == ['outlines 0', 'outlines 1', 'patterns 0', 'patterns 1']
  for number in (0, 1):
    own = read(path / 'patterns')['seeds'][number]
    assert summary['members'][2 + number]['test'] == own['test']
  told = summary['vote']['criteria']
  assert set(told) == {'agreement', 'silhouette', 'probe', 'steadiness'}
  accuracies = [row['train']['acc'] for row in summary['members']]
  for name, found in summary['vote']['rank_correlation'].items():
    expected = scipy.stats.spearmanr(told[name], accuracies).statistic
    assert found == pytest.approx(expected)
    assert f'{name} {found:.2f}' in out
  for values in told.values():
    assert len(values) == 4
    assert all(-1 < value < 1 for value in values)
  best = max(row['train']['acc'] for row in summary['members'])
  assert summary['train']['acc'] > best  # neighbours help weak networks most
  assert 'patterns 1' in (path / 'report.html').read_text()
  with np.load(path / 'assignments.npz') as arrays:
    labels = {s: arrays[f'{s}_labels'] for s in ('train', 'test')}
    seeds = arrays['test_seeds']
  own = jaxclust.load(path)
  alone = jaxclust.load(path / 'patterns', seed=1)
  digits = data.load('digits', size=(16, 16))
  np.testing.assert_array_equal(own.predict(digits.images), labels['train'])
  for model, found in ((own, labels['test']), (alone, seeds[3])):
    np.testing.assert_array_equal(model.predict(digits.test_images), found)
  before = (path / 'outlines' / 'summary.json').stat().st_mtime_ns
  (path / 'summary.json').rename(path / 'old.json')
  assert run('committee', path, *SMALL['committee']) == 0
  assert read(path)['train'] == summary['train']
  assert (path / 'outlines' / 'summary.json').stat().st_mtime_ns == before


def test_members_are_not_judged_by_changes_that_one_has_trained_with():
  runs = commands.load('configs/committee.py').runs
  usual = {'crop', 'stretch', 'flip', 'contrast', 'brightness', 'pattern'}
  assert several._changes_of(runs) == usual
  with runs.unlocked():
    runs.plain.prototypes.blur = 0.5  # of its only stage
  assert several._changes_of(runs) == usual | {'blur'}


def test_members_without_clusters_or_of_other_numbers_are_named(
  tmp_path, capfd
):
  for flags, message in (
    (
      [
        '--config.runs.edges.prototypes.num_clusters=9',
        "--config.members=('plain', 'edges')",
      ],
      "{'plain': 10, 'edges': 9} clusters",
    ),
    (["--config.members=('edgy',)"], "each of config.members is 'edgy'"),
    (['--config.runs.plain.clusterer=kmeans'], 'no config.kmeans'),
    (['--config.runs.plain.spread.num_neighbors=5'], 'set it to 0'),
    (['--config.runs.plain.data.size=(20, 20)'], 'give all the same'),
    (['--config.members=()'], 'config.members is empty: name some of edges,'),
    (
      ['--config.spread.num_neighbors=9999'],
      'config.spread.num_neighbors is 9999',
    ),
  ):
    assert run('committee', tmp_path / 'run', *flags) == 2
    assert message in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_leaderboard_without_labels_or_of_no_method_is_named(tmp_path, capfd):
  path = tmp_path / 'images.npz'
  np.savez(path, images=np.zeros((60, 8, 8), np.uint8))
  for flags, message in (
    ([f'--config.data.name={path}'], 'has no labels'),
    (["--config.methods=('dex',)"], "each of config.methods is 'dex'"),
  ):
    assert run('leaderboard', tmp_path / 'run', *flags) == 2
    assert message in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()

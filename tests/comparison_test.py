"""Finished runs on the same images beside each other."""

import csv
import types

import numpy as np
import pytest
from image_sets import savez
from small_runs import SMALL, draw_npz, read, run

from jaxclust import comparison


def runs_of(*labels):
  confidence = np.linspace(0, 1, len(labels[0]))
  return [
    types.SimpleNamespace(labels=np.array(own), confidence=confidence)
    for own in labels
  ]


def test_agreement_does_not_depend_on_the_numbers_of_clusters():
  a, b, c = runs_of([0, 0, 1, 1, 2, 2], [2, 2, 0, 0, 1, 1], [0, 0, 3, 3, 3, 3])
  assert comparison._agreement(a, b) == {'ari': 1, 'nmi': 1, 'matched': 1}
  found = comparison._agreement(a, c)
  assert found['matched'] == 4 / 6
  assert 0 < found['ari'] < 1
  table, _ = comparison._matched(a, c)
  np.testing.assert_array_equal(
    table, [[2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]]
  )


def test_two_runs_are_compared(tmp_path, capfd):
  name = draw_npz(tmp_path / 'x.npz', labels=np.arange(60) % 3)
  paths = []
  for seed in (0, 5):
    paths.append(tmp_path / f'seed{seed}')
    flags = [name, f'--config.seed={seed}', *SMALL['kmeans']]
    assert run('kmeans', paths[-1], *flags) == 0
  both = f'--config.runs={tuple(map(str, paths))}'
  assert run('compare', tmp_path / 'both', both) == 0
  summary = read(tmp_path / 'both')
  assert summary['runs'] == ['seed0', 'seed5']
  labels = []
  for path in paths:
    with np.load(path / 'assignments.npz') as arrays:
      labels.append(arrays['train_labels'])
  (pair,) = summary['agreement']
  assert pair['between'] == ['seed0', 'seed5']
  with open(tmp_path / 'both' / 'differences.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert rows
  assert len(rows) == round(60 * (1 - pair['matched']))
  sure = [
    min(float(row['seed0 confidence']), float(row['seed5 confidence']))
    for row in rows
  ]
  assert sure == sorted(sure, reverse=True)
  for row in rows:
    number = int(row['file'].split('/')[1])
    for name, own in zip(summary['runs'], labels, strict=True):
      assert int(row[f'{name} cluster']) == own[number]
  text = (tmp_path / 'both' / 'report.html').read_text()
  table = text[text.index('id="options"') : text.index('id="scores"')]
  assert '<td>seed' in table  # and no other option
  assert 'kmeans' not in table
  assert (tmp_path / 'both' / 'figures' / 'flow-1.png').exists()


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_named(tmp_path, capfd, finished):
  other = savez(tmp_path / 'x.npz', images=np.ones((30, 4, 4), np.uint8))
  flags = [f'--config.data.name={other}', '--config.kmeans.num_clusters=1']
  assert run('kmeans', tmp_path / 'other', *flags) == 0
  digits = finished('kmeans').path
  for runs, told in (
    ((str(digits),), 'name the directories of two finished runs'),
    ((str(digits), str(tmp_path / 'none')), 'does not hold a finished run'),
    ((str(digits), str(digits)), 'name each run once'),
    ((str(digits), str(tmp_path / 'other')), 'clustered different images'),
  ):
    capfd.readouterr()
    assert run('compare', tmp_path / 'both', f'--config.runs={runs}') == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'both').exists()

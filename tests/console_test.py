"""Output on a terminal and in a pipe."""

import os
import subprocess
import sys
import threading

from jaxclust.report import console

HEADS = ('ARI', 'NMI', 'ACC')
WAIT = """
import threading
from jaxclust.report import console

console._SECONDS_OF_SILENCE = 0
started = threading.Event()
start = console.rich.progress.Progress.start

def tell(self):
  start(self)
  started.set()

console.rich.progress.Progress.start = tell
with console.working('data'):
  started.wait()
"""


def test_a_phase_of_unknown_length_is_a_line_in_a_pipe(monkeypatch, capsys):
  told = threading.Event()
  monkeypatch.setattr(console, '_SECONDS_OF_SILENCE', 0)

  def tell(*words, **options):
    print(*words, **options)
    told.set()

  monkeypatch.setattr(console, 'print', tell, raising=False)
  with console.working('data'):
    assert told.wait(60)
  assert capsys.readouterr().out == 'data ...\n'


def test_a_short_phase_is_not_shown(capsys):
  with console.working('data'):
    pass
  assert capsys.readouterr().out == ''


def test_a_phase_of_unknown_length_is_a_clock_on_a_terminal():
  done = subprocess.run(
    [sys.executable, '-c', WAIT],
    env=os.environ | {'FORCE_COLOR': '1', 'TERM': 'xterm'},
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  assert 'data' in done.stdout
  assert '0:00:00' in done.stdout
  assert '\x1b' in done.stdout


def test_the_purities_of_a_table_are_sorted_side_by_side(capsys):
  scores = dict.fromkeys(('ari', 'nmi', 'acc', 'purity'), 0.5)
  summary = {
    'experiment': 'kmeans',
    'train': scores | {'cluster_purity': [0.25, 1.0, 0.5]},
  }
  console.closing_table(summary, {'train': {'cluster_purity': (0.125, 0.75)}})
  lines = capsys.readouterr().out.splitlines()
  rows = [line.split() for line in lines if 'rank' in line]
  assert [row[3:] for row in rows] == [
    ['1.0000', '0.7500'],
    ['0.5000', '0.1250'],
    ['0.2500'],
  ]


def test_the_headline_stands_beside_what_was_published():
  train = {'ari': 0.25, 'nmi': 0.5, 'acc': 0.75, 'purity': 1.0}
  summary = {'train': train}
  head, first, *_ = console.headline(summary, {'train': {'ari': 0.4}})
  assert head == ['', 'train', 'report, train']
  assert first[1:] == ['0.2500', '0.4000']
  spread = {'train': dict.fromkeys(train, 0.125)}
  summary = {'seeds': [], 'mean': summary, 'std': spread}
  assert console.headline(summary, {})[1][1:] == ['0.2500 ± 0.1250']


def test_without_labels_the_headline_is_what_needs_none():
  summary = {'fit': {'bic': -123456.7, 'silhouette': 0.25, 'num_steps': 3}}
  assert console.headline(summary, {}) == [
    ['', 'all images'],
    ['silhouette', '0.2500'],
    ['BIC', '-123,457'],
  ]
  assert console.headline({}, {}) == []


def test_a_score_that_a_seed_lacks_is_missing(capsys):
  names = ('ari', 'nmi', 'acc', 'purity')
  scores = dict.fromkeys(names, 0.5) | {'cluster_purity': [0.25, 1.0]}
  seeds = [{'seed': 3, 'test': scores}, {'seed': 4, 'train': {'ari': 0.25}}]
  summary = {
    'experiment': 'gmm',
    'seeds': seeds,
    'mean': {'train': {'ari': 0.25}, 'test': scores},
    'std': {'train': {'ari': 0.0}, 'test': dict.fromkeys(names, 0.0)},
  }
  _, ari, nmi, *_ = console.headline(summary, {})
  assert ari[1:] == [
    '0.2500 ± 0.0000 (1 of 2 seeds)',
    '0.5000 ± 0.0000 (1 of 2 seeds)',
  ]
  assert nmi[1:] == ['- (0 of 2 seeds)', '0.5000 ± 0.0000 (1 of 2 seeds)']
  assert console.seed_scores(summary) == [
    ['seed', *(f'{n}, {s}' for s in ('train', 'test') for n in HEADS)],
    ['3', '-', '-', '-', '0.5000', '0.5000', '0.5000'],
    ['4', '0.2500', '-', '-', '-', '-', '-'],
  ]
  voted = console.seed_scores(summary | {'vote': {'test': {'acc': 0.75}}})
  assert voted[-1] == ['vote', '-', '-', '-', '-', '-', '0.7500']
  agreement = [0.8] * len(summary['seeds'])
  told = console.seed_scores(
    summary | {'vote': {'criteria': {'agreement': agreement}}}
  )
  assert [row[-1] for row in told[:2]] == ['agreement', '0.8000']
  assert told[-1][-1] == '-'
  console.closing_table(summary, {'train': {'cluster_purity': [0.5]}})
  assert 'purity, rank 2' in capsys.readouterr().out


def test_a_score_of_the_fit_that_a_seed_lacks_is_missing(capsys):
  fits = [{'bic': 2.0, 'silhouette': 0.5}, {'bic': 4.0}]
  seeds = [{'seed': i, 'fit': fit} for i, fit in enumerate(fits)]
  mean = {'fit': {'bic': 3.0, 'silhouette': 0.5}}
  summary = {'experiment': 'gmm', 'seeds': seeds, 'mean': mean}
  silhouette = ['silhouette', '0.5000 (1 of 2 seeds)']
  assert console.headline(summary, {})[1:] == [silhouette, ['BIC', '3.0000']]
  assert console.seed_scores(summary) == []
  del mean['fit']['silhouette']
  assert console.headline(summary, {})[1] == ['silhouette', '- (1 of 2 seeds)']
  console.closing_table(summary, {})
  assert '1 of 2 seeds' in capsys.readouterr().out


def test_all_criteria_of_a_sweep_and_their_choices_are_shown(capsys):
  choices = {'inertia': 2, 'silhouette': 4, 'stability': 4, 'strength': None}
  choices |= {'bic': 4, 'aic': 2}
  records = [
    {'num_clusters': k} | dict.fromkeys(choices, -1.23456e7) for k in (2, 4)
  ]
  console.sweep_table(records, choices)
  out = capsys.readouterr().out
  assert out.count('-1.23456e+07') == 2 * len(choices)
  assert out.count('-1.23456e+07*') == 5


def test_members_are_told_of_where_there_are_no_labels(capsys):
  criteria = {'agreement': [0.75, 0.5], 'probe': [0.25, None]}
  ranks = {'agreement': 0.5, 'probe': None}
  members = [{'member': 'edges 0'}, {'member': 'edges 1'}]
  vote = {'criteria': criteria, 'rank_correlation': ranks}
  console.closing_table({'members': members, 'vote': vote}, {})
  out = capsys.readouterr().out
  assert 'edges 1' in out
  assert '0.7500' in out
  assert "ACC (Spearman's): agreement 0.50\n" in out

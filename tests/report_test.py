"""What a person sees on a terminal, or finds in a pipe."""

import os
import subprocess
import sys
import threading

from jaxclust import report

WAIT = """
import threading
from jaxclust import report

report._SECONDS_OF_SILENCE = 0
started = threading.Event()
start = report.rich.progress.Progress.start

def tell(self):
  start(self)
  started.set()

report.rich.progress.Progress.start = tell
with report.working('data'):
  started.wait()
"""


def test_a_phase_of_unknown_length_is_a_line_in_a_pipe(monkeypatch, capsys):
  told = threading.Event()
  monkeypatch.setattr(report, '_SECONDS_OF_SILENCE', 0)
  say = report.say
  monkeypatch.setattr(report, 'say', lambda text: (say(text), told.set()))
  with report.working('data'):
    assert told.wait(60)
  assert capsys.readouterr().out == 'data ...\n'


def test_a_short_phase_is_not_told_of(capsys):
  with report.working('data'):
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
  report.closing_table(summary, {'train': {'cluster_purity': (0.125, 0.75)}})
  lines = capsys.readouterr().out.splitlines()
  rows = [line.split() for line in lines if 'rank' in line]
  assert [row[3:] for row in rows] == [
    ['1.0000', '0.7500'],
    ['0.5000', '0.1250'],
    ['0.2500'],
  ]

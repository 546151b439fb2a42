"""Output whose reader is gone, full, or knows few characters."""

import os
import subprocess
import sys

import pytest
from small_runs import ROOT

TALK = """
import sys
from jaxclust import terminal
with terminal.forgiving():
  for _ in range(10_000):
    print('clusters \u2264 10')
  print('the end', file=sys.stderr)
  sys.exit(5)
"""


def talk(stdout, **environment):
  return subprocess.run(
    [sys.executable, '-c', TALK],
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=os.environ | environment,
    check=False,
  )


def test_a_pipe_that_nobody_reads_ends_nothing():
  reader, writer = os.pipe()
  os.close(reader)
  done = talk(writer)
  os.close(writer)
  assert (done.returncode, done.stderr) == (5, 'the end\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has it')
def test_a_full_disk_under_the_output_ends_nothing():
  with open('/dev/full', 'w') as full:
    done = talk(full)
  assert (done.returncode, done.stderr) == (5, 'the end\n')


def test_a_terminal_of_few_characters_shows_others_spelled_out():
  done = talk(subprocess.PIPE, PYTHONIOENCODING='ascii')
  assert (done.returncode, done.stderr) == (5, 'the end\n')
  assert set(done.stdout.splitlines()) == {'clusters \\u2264 10'}


@pytest.mark.slow
def test_a_run_into_a_closed_pipe_ends_well(tmp_path):
  command = [sys.executable, 'launch.py', '--config=configs/kmeans.py:digits']
  command += [f'--workdir={tmp_path}', '--config.kmeans.max_steps=3']
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(command, stdout=writer, cwd=ROOT, check=False)
  os.close(writer)
  assert done.returncode == 0
  assert (tmp_path / 'summary.json').exists()

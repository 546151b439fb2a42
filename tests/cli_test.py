"""The command line: how it starts, finds configs and reports errors."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

import launch
from jaxclust import cli, experiments
from jaxclust.errors import InputError, RunError

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
MODULE, FUNCTION = PROJECT['scripts']['jaxclust'].split(':')


@pytest.mark.parametrize(
  'program',
  [
    ['launch.py'],
    ['-m', 'jaxclust'],
    ['-c', f'import {MODULE}; {MODULE}.{FUNCTION}()'],
  ],
)
def test_every_program_shows_help_without_a_device(program):
  done = subprocess.run(
    [sys.executable, *program, '--help'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'none_such'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert '--workdir' in done.stdout
  assert '--[no]debug' in done.stdout


def test_the_command_line_imports_neither_jax_nor_numpy():
  code = (
    'import sys; from jaxclust import cli\n'
    'assert not {"jax", "numpy"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_windows_is_told_in_one_line(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'platform', 'win32')
  assert launch.main(['jaxclust', 'list']) == 2
  monkeypatch.undo()
  error = 'error: jaxclust runs on Linux and macOS: on Windows, use WSL\n'
  assert capsys.readouterr().err == error


@pytest.mark.parametrize(
  ('program', 'typed'),
  [
    ('launch.py', 'python launch.py'),
    ('my files/launch.py', "python 'my files/launch.py'"),
    ('/opt/bin/jaxclust', 'jaxclust'),
    ('/opt/lib/jaxclust/__main__.py', 'python -m jaxclust'),
  ],
)
def test_the_command_is_told_as_it_is_typed(program, typed):
  flag = '--config.data.size=(8, 8)'
  assert cli._command([program, flag]) == f"{typed} '{flag}'"


def run(monkeypatch, error, *flags):
  """Returns the status of a command whose experiment raises an error."""

  def fail(*args):
    raise error

  monkeypatch.setattr(experiments, 'run', fail)
  config = f'--config={ROOT}/configs/gmm.py:digits'
  return launch.main(['launch.py', config, *flags])


def caused():
  error = RunError('unexpected KeyError')
  error.__cause__ = KeyError('gone')
  return error


@pytest.mark.parametrize(
  ('error', 'told'),
  [
    (caused(), 'unexpected KeyError'),
    (
      ZeroDivisionError('by\nzero'),
      'unexpected ZeroDivisionError (by zero): --debug shows its traceback',
    ),
  ],
)
def test_debug_shows_the_traceback_of_an_unexpected_error(
  error, told, monkeypatch, capsys
):
  assert run(monkeypatch, error) == 3
  assert capsys.readouterr().err == f'error: {told}\n'
  assert run(monkeypatch, error, '--debug') == 3
  shown, _, line = capsys.readouterr().err.rstrip().rpartition('\n')
  assert line == f'error: {told}'
  assert 'Traceback (most recent call last)' in shown
  assert type(error.__cause__ or error).__name__ in shown


@pytest.mark.parametrize(
  ('error', 'status'), [(RunError('diverged'), 3), (InputError('bad'), 2)]
)
def test_debug_shows_no_traceback_of_an_expected_error(
  error, status, monkeypatch, capsys
):
  assert run(monkeypatch, error, '--debug') == status
  assert capsys.readouterr().err == f'error: {error}\n'

"""Signals end what runs: at once, when it has saved, or the second time."""

import pathlib
import signal
import subprocess
import sys

import pytest

from jaxclust import stopping

ROOT = pathlib.Path(__file__).parent.parent


def run(code):
  """What a process of its own does with some code."""
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def send(number):
  signal.raise_signal(number)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs(number):
  before = signal.getsignal(number)
  with (
    pytest.raises(stopping.Stopped, match=number.name) as caught,
    stopping.listening(),
  ):
    send(number)
  assert caught.value.status == 128 + number
  assert signal.getsignal(number) is before


def test_a_signal_waits_for_a_check():
  done = []

  def run():
    stopping.check()
    assert not stopping.is_requested()
    send(signal.SIGTERM)
    assert stopping.is_requested()
    done.append('saved')
    stopping.check()
    done.append('too much')

  with (
    pytest.raises(stopping.Stopped),
    stopping.listening(),
    stopping.postponed(),
  ):
    run()
  assert done == ['saved']


def test_a_signal_that_nobody_checks_ends_with_the_context():
  with (
    pytest.raises(stopping.Stopped),
    stopping.listening(),
    stopping.postponed(),
  ):
    send(signal.SIGTERM)


def test_another_error_is_not_hidden_by_a_signal():
  def run():
    send(signal.SIGTERM)
    raise KeyError

  with pytest.raises(KeyError), stopping.listening(), stopping.postponed():
    run()


def test_no_signal_is_remembered_for_the_next_run():
  with pytest.raises(stopping.Stopped), stopping.listening():
    send(signal.SIGINT)
  with stopping.listening(), stopping.postponed():
    stopping.check()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_lets_the_first_signal_be_answered(number):
  done = []

  def run():
    send(number)
    for _ in range(3):
      send(signal.SIGTERM)
    done.append('saved')
    stopping.check()

  with (
    pytest.raises(stopping.Stopped, match=number.name),
    stopping.listening(),
    stopping.postponed(),
  ):
    run()
  assert done == ['saved']


STUBBORN = """
import signal, threading
from jaxclust import stopping

with stopping.listening(), stopping.postponed():
  signal.raise_signal({first})
  print('goes on', flush=True)
  {last}
  threading.Event().wait()
"""


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(first):
  """Even where no step of Python comes any more."""
  last = 'signal.pthread_kill(threading.main_thread().ident, 2)'
  code = STUBBORN.format(first=int(first), last=last)
  done = run(code)
  assert (done.returncode, done.stdout) == (130, 'goes on\n')


DEAF = """
import signal, threading
from jaxclust import stopping

stopping._SECONDS_TO_END = 0
with stopping.listening(), stopping.postponed():
  signal.raise_signal({number})
  threading.Event().wait()  # as if for a device
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_who_does_not_end_in_time_is_ended(number):
  done = run(DEAF.format(number=int(number)))
  assert done.returncode == 128 + number
  assert done.stderr == f'error: stopped by {number.name}\n'


BUSY = """
import signal, threading
from jaxclust import stopping

stopping._SECONDS_TO_END = stopping._SECONDS_TO_SAVE = 0
looks, look = threading.Semaphore(0), stopping.select.select

def counted(*args):
  looks.release()
  return look(*args)

stopping.select.select = counted
with stopping.listening(), stopping.postponed():
  with stopping.saving():
    signal.raise_signal(15)
    for _ in range(9):
      looks.acquire()
    print('saved', flush=True)
  threading.Event().wait()
"""


def test_a_save_that_takes_longer_is_waited_for():
  done = run(BUSY)
  assert (done.returncode, done.stdout) == (143, 'saved\n')

"""Signals end a run: at once, when it has saved, or the second time."""

import pathlib
import signal
import subprocess
import sys

import pytest

from jaxclust import signals

ROOT = pathlib.Path(__file__).parent.parent


def run(code):
  """Runs code in a process of its own."""
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


@pytest.fixture(autouse=True)
def _no_nohup():
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
  'number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_a_signal_ends_the_run(number):
  before = signal.getsignal(number)
  with (
    pytest.raises(signals.Stopped, match=number.name) as caught,
    signals.listening(),
  ):
    send(number)
  assert caught.value.status == 128 + number
  assert signal.getsignal(number) is before


def test_a_terminal_that_goes_away_is_ignored_under_nohup():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.listening():
      send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_a_check():
  done = []

  def run():
    signals.check()
    assert not signals.requested()
    send(signal.SIGTERM)
    assert signals.requested() == signal.SIGTERM
    done.append('saved')
    signals.check()
    done.append('too much')

  with (
    pytest.raises(signals.Stopped),
    signals.listening(),
    signals.postponed(),
  ):
    run()
  assert done == ['saved']


def test_a_signal_that_nothing_checks_is_raised_at_the_end_of_the_context():
  with (
    pytest.raises(signals.Stopped),
    signals.listening(),
    signals.postponed(),
  ):
    send(signal.SIGTERM)


def test_another_error_is_not_hidden_by_a_signal():
  def run():
    send(signal.SIGTERM)
    raise KeyError

  with pytest.raises(KeyError), signals.listening(), signals.postponed():
    run()


def test_no_signal_is_remembered_for_the_next_run():
  with pytest.raises(signals.Stopped), signals.listening():
    send(signal.SIGINT)
  with signals.listening(), signals.postponed():
    signals.check()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_not_interrupt_the_first(number):
  done = []

  def run():
    send(number)
    for _ in range(3):
      send(signal.SIGTERM)
    done.append('saved')
    signals.check()

  with (
    pytest.raises(signals.Stopped, match=number.name),
    signals.listening(),
    signals.postponed(),
  ):
    run()
  assert done == ['saved']


STUBBORN = """
import signal, threading
from jaxclust import signals

with signals.listening(), signals.postponed():
  signal.raise_signal({first})
  print('goes on', flush=True)
  {last}
  threading.Event().wait()
"""


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(first):
  """Even while the main thread runs no bytecode."""
  last = 'signal.pthread_kill(threading.main_thread().ident, 2)'
  code = STUBBORN.format(first=int(first), last=last)
  done = run(code)
  assert (done.returncode, done.stdout) == (130, 'goes on\n')


DEAF = """
import signal, threading
from jaxclust import signals

signals._SECONDS_TO_END = 0
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with signals.listening(), signals.postponed():
  signal.raise_signal({number})
  threading.Event().wait()  # stands for a device
"""


@pytest.mark.parametrize(
  'number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_a_process_that_does_not_end_in_time_is_ended(number):
  done = run(DEAF.format(number=int(number)))
  assert done.returncode == 128 + number
  assert done.stderr == f'error: stopped by {number.name}\n'


BUSY = """
import signal, threading
from jaxclust import signals

signals._SECONDS_TO_END = signals._SECONDS_TO_SAVE = 0
looks, look = threading.Semaphore(0), signals.select.select

def counted(*args):
  looks.release()
  return look(*args)

signals.select.select = counted
with signals.listening(), signals.postponed():
  with signals.saving():
    signal.raise_signal(15)
    for _ in range(9):
      looks.acquire()
    print('saved', flush=True)
  threading.Event().wait()
"""


def test_a_save_that_takes_longer_is_waited_for():
  done = run(BUSY)
  assert (done.returncode, done.stdout) == (143, 'saved\n')

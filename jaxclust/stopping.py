"""SIGTERM and Ctrl-C: what is done is saved, and the process ends.

The first signal ends what runs by an exception, at once or, where that could
lose something, at the next `check`. A Ctrl-C after the first ends the process,
even while it compiles or waits for a device. A SIGTERM never does: programs
that send one often send it twice, to the process and to its group.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
  """A signal has asked for the end; `status` is that of the process."""

  def __init__(self, number: int):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.status = 128 + number


class _Requests:
  """What has been asked for, and whether it has to wait."""

  number: int | None = None
  waits: bool = False


_requests = _Requests()


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Raises `Stopped` in place of what signals do else; main thread only."""
  _requests.number, _requests.waits = None, False
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = {number: signal.signal(number, _stop) for number in _SIGNALS}
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
  watcher.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(writer)
    watcher.join()
    os.close(reader)


def _stop(number, frame):
  del frame
  if _requests.number is None:
    _requests.number = number
    if not _requests.waits:
      raise Stopped(number)


def _watch(reader):
  """Ends the process at a Ctrl-C that is not the first signal. Python runs
  handlers between two steps of its own, but writes the numbers of signals to a
  pipe as they come."""
  seen = 0
  while number := os.read(reader, 1):
    seen += number[0] in _SIGNALS
    if seen > 1 and number[0] == signal.SIGINT:
      os._exit(128 + number[0])


@contextlib.contextmanager
def postponed() -> Iterator[None]:
  """Lets a signal wait for the next `check`, or for the end of the context."""
  _requests.waits = True
  try:
    yield
  finally:
    _requests.waits = False
  check()


def is_requested() -> bool:
  """Whether a signal has asked for the end."""
  return _requests.number is not None


def check() -> None:
  """Ends what runs if that has been asked for.

  Raises:
    Stopped: then.
  """
  if _requests.number is not None:
    raise Stopped(_requests.number)

"""SIGTERM and Ctrl-C: what is done is saved, and the process ends.

The first signal ends what runs by an exception, at once or, where that could
lose something, at the next `check`. Who has not ended in some seconds, as it
compiles or waits for a device, is ended then, unless it saves. A Ctrl-C after
the first ends the process at once. A second SIGTERM changes nothing: programs
that send one often send it twice, to the process and to its group.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# From a signal to the end, and between two looks at a save that takes longer.
_SECONDS_TO_END, _SECONDS_TO_SAVE = 5, 1


class Stopped(BaseException):
  """A signal has asked for the end; `status` is that of the process."""

  def __init__(self, number: int):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.status = 128 + number


class _Requests:
  """What has been asked for, and what it has to wait for."""

  number: int | None = None
  waits: bool = False
  saves: bool = False


_requests = _Requests()


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Raises `Stopped` in place of what signals do else; main thread only."""
  _requests.number, _requests.waits, _requests.saves = None, False, False
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
  """Ends the process where Python cannot, which runs handlers between two steps
  of its own; the numbers of signals it writes to a pipe as they come."""
  first, left, deadline = None, None, None
  while True:
    if deadline is not None:
      left = max(0, deadline - time.monotonic())
    if not select.select([reader], [], [], left)[0]:
      if not _requests.saves:
        _end(first)
      deadline = time.monotonic() + _SECONDS_TO_SAVE
      continue
    number = os.read(reader, 1)
    if not number:
      return
    if number[0] not in _SIGNALS:
      continue
    if first is None:
      first, deadline = number[0], time.monotonic() + _SECONDS_TO_END
    elif number[0] == signal.SIGINT:
      _end(number[0])


def _end(number):
  os.write(2, f'error: {Stopped(number)}\n'.encode())
  os._exit(128 + number)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
  """Lets a signal wait for the next `check`, or for the end of the context."""
  _requests.waits = True
  try:
    yield
  finally:
    _requests.waits = False
  check()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Lets the end wait for what is saved here, however long that takes."""
  _requests.saves = True
  try:
    yield
  finally:
    _requests.saves = False


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

"""SIGTERM, SIGHUP and Ctrl-C: the run saves its state, then the process ends.

The first signal raises an exception, at once or, where that could lose work, at
the next `check`. A process that is still there some seconds later, because it
compiles or waits for a device, is ended then; a save may finish first. A Ctrl-C
after the first signal ends the process at once. A second SIGTERM has no effect,
since many programs send one to the process and one to its group.
"""

import contextlib
import os
import select
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds from the first signal to the end of the process.
_SECONDS_TO_END = 5

# Seconds between two checks whether a save that outlasts them has finished.
_SECONDS_TO_SAVE = 1


class Stopped(BaseException):
  """A signal stopped the run; `status` is the exit status of the process."""

  def __init__(self, number: int):
    super().__init__(f'stopped by {signal.Signals(number).name}')
    self.status = 128 + number


# The first signal, whether it has to wait for a check or a save, and what is
# called before a signal ends the process.
_requests = types.SimpleNamespace(
  number=None, waits=False, saves=False, farewell=None
)


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Makes SIGTERM, SIGHUP and Ctrl-C raise `Stopped`; call it in the main
  thread. A SIGHUP that is ignored stays so.

  Raises:
    Stopped: at the first signal, or at the next `check` within `postponed`.
  """
  vars(_requests).update(number=None, waits=False, saves=False)
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = {number: signal.signal(number, _stop) for number in _heard()}
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  watcher = threading.Thread(
    target=_watch, args=(reader, tuple(before)), daemon=True
  )
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
    _requests.number = None


def _heard():
  """The signals that stop a run: SIGHUP too, unless `nohup` has it ignored."""
  hang_up = getattr(signal, 'SIGHUP', None)
  if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN:
    return _SIGNALS
  return (*_SIGNALS, hang_up)


def _stop(number, _):
  if _requests.number is None:
    _requests.number = number
    if not _requests.waits:
      raise Stopped(number)


def _watch(reader, heard):
  """Ends the process when the main thread does not.

  Python runs signal handlers only between two bytecodes of the main thread, but
  writes the number of each signal to a pipe as soon as the signal arrives.
  """
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
    if number[0] not in heard:
      continue
    if first is None:
      first, deadline = number[0], time.monotonic() + _SECONDS_TO_END
    elif number[0] == signal.SIGINT:
      _end(number[0])


def _end(number):
  stopped = Stopped(number)
  if _requests.farewell is not None:
    _requests.farewell(stopped.status, str(stopped))
  with contextlib.suppress(OSError):  # the terminal may be gone
    os.write(2, f'error: {stopped}\n'.encode())
  os._exit(stopped.status)


def before_the_end(farewell: Callable) -> None:
  """Lets `farewell(status, text)` tell others that a signal ends the process,
  before it does, or in its place."""
  _requests.farewell = farewell


@contextlib.contextmanager
def postponed() -> Iterator[None]:
  """Postpones `Stopped` to the next `check`, or to the end of the context.

  Raises:
    Stopped: at the end of the context, if a signal arrived within it.
  """
  _requests.waits = True
  try:
    yield
  finally:
    _requests.waits = False
  check()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Keeps the process alive after a signal until the context ends."""
  _requests.saves = True
  try:
    yield
  finally:
    _requests.saves = False


def is_saving() -> bool:
  """Returns whether the process is within `saving`."""
  return _requests.saves


def requested() -> int:
  """The number of the signal that has asked the run to stop; 0 if none has."""
  return _requests.number or 0


def check() -> None:
  """Stops the run if a signal has asked for it.

  Raises:
    Stopped: if one has.
  """
  if _requests.number is not None:
    raise Stopped(_requests.number)

"""The terminal, which may be gone before a run is."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Forgiving:
  """A text stream that takes anything, also where nobody reads it any more."""

  def __init__(self, stream: TextIO):
    self._stream = stream
    if hasattr(stream, 'reconfigure'):  # for characters it cannot show
      stream.reconfigure(errors='backslashreplace')

  def write(self, text: str) -> int:
    with self._spared():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._spared():
      self._stream.flush()

  @contextlib.contextmanager
  def _spared(self):
    """After the first error, the operating system drops what is written."""
    try:
      yield
    except OSError:
      nothing = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nothing, self._stream.fileno())
      os.close(nothing)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
  """Lets output go nowhere where the terminal, or the reader of a pipe, is gone
  or full, and spells out what its encoding lacks."""
  streams = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_Forgiving, streams)
  try:
    yield
  finally:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    sys.stdout, sys.stderr = streams

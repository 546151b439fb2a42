"""TensorBoard's view of a run: the numbers of `metrics.jsonl`, as they come."""

import contextlib
import importlib.util
import pathlib
import shutil
import threading
from collections.abc import Iterator

from jaxclust import workdir
from jaxclust.numerics import InputError

# What a record is of, rather than what it says; and what counts its steps.
_NAMES = ('phase', 'seed')
_STEPS = ('epoch', 'step', 'num_clusters', 'row')

_SECONDS_BETWEEN_LOOKS = 1


def check() -> None:
  """Checks that there is tensorboardX.

  Raises:
    InputError: if there is none.
  """
  if importlib.util.find_spec('tensorboardX') is None:
    raise InputError(
      'tensorboard is True, and there is no tensorboardX: '
      "pip install '.[board]', or leave it False"
    )


@contextlib.contextmanager
def mirror(path: pathlib.Path) -> Iterator[None]:
  """Writes what is in the log of a run, and what comes, into `tensorboard/`.

  The log is the truth: when a run that goes on has dropped lines of it, all is
  written anew.
  """
  done = threading.Event()
  copy = _Copy(path)

  def follow():
    while not done.wait(_SECONDS_BETWEEN_LOOKS):
      copy.update()

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    copy.update()
    copy.close()


class _Copy:
  """A folder of events, and how much of the log is in it."""

  def __init__(self, path):
    self.path = path
    self.written = []
    self.writer = None

  def update(self):
    records = workdir.read_log(self.path)
    if self.writer is None or records[: len(self.written)] != self.written:
      self.close()
      self.open()
    for record in records[len(self.written) :]:
      for tag, value, step in scalars(record):
        self.writer.add_scalar(tag, value, step)
    self.written = records

  def open(self):
    import tensorboardX

    folder = self.path / 'tensorboard'
    shutil.rmtree(folder, ignore_errors=True)
    self.writer = tensorboardX.SummaryWriter(
      str(folder), flush_secs=_SECONDS_BETWEEN_LOOKS
    )
    self.written = []

  def close(self):
    if self.writer is not None:
      self.writer.close()
      self.writer = None


def scalars(record: dict) -> list[tuple[str, float, int]]:
  """The numbers of a record of the log, each with its tag and step."""
  step = next((record[name] for name in _STEPS if name in record), 0)
  place = '/'.join(str(record[name]) for name in _NAMES if name in record)
  return [
    (f'{place}/{name}', float(value), step)
    for name, value in record.items()
    if isinstance(value, int | float) and name not in (*_NAMES, *_STEPS)
  ]

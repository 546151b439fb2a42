"""Mirror of a run's log for TensorBoard."""

import contextlib
import importlib.util
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

from jaxclust.errors import InputError

# Keys that name the series of a record.
_SERIES = ('phase', 'seed')

# Keys that count the steps of a record; the first one present is used.
_STEPS = ('epoch', 'step', 'num_clusters', 'row')

_SECONDS_BETWEEN_READS = 1


def check() -> None:
  """Checks that tensorboardX is installed.

  Raises:
    InputError: if it is not.
  """
  if importlib.util.find_spec('tensorboardX') is None:
    raise InputError(
      'tensorboard is True, but tensorboardX is not installed: '
      "pip install '.[board]', or set tensorboard to False"
    )


@contextlib.contextmanager
def mirror(
  folder: pathlib.Path, read: Callable[[], list[dict]]
) -> Iterator[None]:
  """Copies the records of a log into event files, also while the log grows.

  If a resumed run has dropped records of its log, all event files are written
  again.

  Args:
    folder: of the event files; an existing one is replaced.
    read: returns all records of the log.
  """
  done = threading.Event()
  copy = _Copy(folder, read)

  def follow():
    while not done.wait(_SECONDS_BETWEEN_READS):
      copy.update()

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    copy.update()
    copy.writer.close()


class _Copy:
  """A folder of event files, and the records that it holds."""

  def __init__(self, folder, read):
    self.folder, self.read = folder, read
    self.restart()

  def restart(self):
    import tensorboardX

    shutil.rmtree(self.folder, ignore_errors=True)
    self.written = []
    self.writer = tensorboardX.SummaryWriter(
      str(self.folder), flush_secs=_SECONDS_BETWEEN_READS
    )

  def update(self):
    records = self.read()
    if records[: len(self.written)] != self.written:
      self.writer.close()
      self.restart()
    for record in records[len(self.written) :]:
      for tag, value, step in scalars(record):
        self.writer.add_scalar(tag, value, step)
    self.written = records


def scalars(record: dict) -> list[tuple[str, float, int]]:
  """Returns the numbers of a record of the log, each as (tag, value, step).

  >>> scalars({'phase': 'gmm', 'seed': 3, 'step': 5, 'score': 0.5})
  [('gmm/3/score', 0.5, 5)]
  """
  step = next((record[key] for key in _STEPS if key in record), 0)
  series = '/'.join(str(record[key]) for key in _SERIES if key in record)
  return [
    (f'{series}/{key}', float(value), step)
    for key, value in record.items()
    if isinstance(value, int | float) and key not in (*_SERIES, *_STEPS)
  ]

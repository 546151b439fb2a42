"""Mirror of a run's log for TensorBoard."""

import contextlib
import importlib.util
import pathlib
import shutil
import threading
from collections.abc import Iterator
from concurrent import futures

from jaxclust import workdir
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
def mirror(path: pathlib.Path) -> Iterator[None]:
  """Copies the log of a run into event files below `path/tensorboard`, also
  while the log grows.

  If a resumed run has dropped records of its log, all event files are written
  again.
  """
  done = threading.Event()
  with futures.ThreadPoolExecutor(1) as pool:
    try:
      copy = pool.submit(_follow, path, done)
      yield
    finally:
      done.set()
  copy.result()


def _follow(path, done):
  """Copies what is new in a log, again and again until it is done."""
  import tensorboardX

  folder = path / 'tensorboard'
  written, writer, is_last = [], None, False
  while not is_last:
    is_last = done.wait(_SECONDS_BETWEEN_READS)
    records = workdir.read_log(path)
    if writer is None or records[: len(written)] != written:
      if writer is not None:
        writer.close()
      shutil.rmtree(folder, ignore_errors=True)
      writer = tensorboardX.SummaryWriter(
        str(folder), flush_secs=_SECONDS_BETWEEN_READS
      )
      written = []
    for record in records[len(written) :]:
      for scalar in scalars(record):
        writer.add_scalar(*scalar)
    written = records
  writer.close()


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

"""The run directory: its lock, its config, its log and its files.

A directory belongs to one config, and to one process at a time. Each file but
the logs is written beside its place and renamed, so that it is never partial.
"""

import contextlib
import datetime
import fcntl
import io
import itertools
import json
import os
import pathlib
import shutil
import socket
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxclust.errors import InputError
from jaxclust.paths import as_path

_ABSENT = object()

# Suffixes of files that are written line by line.
_LOGS = {'.jsonl', '.log'}


def new_path(name: str) -> pathlib.Path:
  """Returns a path `runs/NAME-TIME` that does not exist yet."""
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  path = pathlib.Path('runs', f'{name}-{now}')
  return numbered(path) if path.exists() else path


def numbered(path: pathlib.Path) -> pathlib.Path:
  """Returns the first of `path-1`, `path-2`, ... that does not exist."""
  paths = (path.with_name(f'{path.name}-{n}') for n in itertools.count(1))
  return next(path for path in paths if not path.exists())


def check(path: pathlib.Path, config: dict) -> bool:
  """Checks that `claim` could take a directory, and writes nothing.

  Returns:
    Whether the directory holds the finished run of this config.

  Raises:
    InputError: if it cannot be written or belongs to another config.
  """
  path = as_path(path)
  if _check_config(path, config) and is_finished(path):
    return True
  place = next(p for p in (path, *path.parents) if p.exists())
  if not place.is_dir():
    raise _unwritable(path, f'{place} is a file')
  if not os.access(place, os.W_OK | os.X_OK):
    raise _unwritable(path, f'{place} is read-only')
  return False


def is_finished(path: pathlib.Path) -> bool:
  """Returns whether a run has written its summary, the last of its files."""
  return pathlib.Path(path, 'summary.json').exists()


def read_config(path: pathlib.Path) -> ConfigDict:
  """Returns the config of a run as it was given, with tuples for JSON's lists.

  Raises:
    InputError: if it cannot be read.
  """
  try:
    config = parse_object((path / 'config.json').read_bytes())
  except (OSError, ValueError) as error:
    raise _unreadable(path, error) from error
  return ConfigDict(_with_tuples(config)).lock()


@contextlib.contextmanager
def mirrored(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory with the files of a run but its figures and its page: what is
  written there, in the way of this module, leaves the run as it is."""
  with tempfile.TemporaryDirectory() as folder:
    here = pathlib.Path(folder)
    for file in path.iterdir():
      if file.suffix in _LOGS:  # which are written in place
        shutil.copy(file, here)
      elif file.name not in ('figures', 'report.html'):
        (here / file.name).symlink_to(file)
    yield here


def _with_tuples(value):
  if isinstance(value, dict):
    return {key: _with_tuples(each) for key, each in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _unreadable(path, error):
  return InputError(
    f'{path / "config.json"} cannot be read ({error}): name another directory '
    'with --workdir=DIR'
  )


@contextlib.contextmanager
def claim(path: pathlib.Path, config: dict) -> Iterator[pathlib.Path]:
  """Makes or reopens the run directory of a config, and locks it.

  The operating system releases the lock when the process ends. The file `.lock`
  names the process that holds it.

  Raises:
    InputError: if it cannot be written, is in use by another run, or belongs to
      another config.
  """
  path = as_path(path)
  with contextlib.ExitStack() as stack:
    try:
      path.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(path / '.lock', 'a+'))
      _lock(lock, path)
      lock.truncate(0)
      lock.write(f'{os.getpid()} on {socket.gethostname()}')
      lock.flush()
      if not _check_config(path, config):
        write_json(path, 'config.json', config)
    except OSError as error:
      raise _unwritable(path, error.strerror) from error
    yield path


def _unwritable(path, why):
  return InputError(
    f'workdir {path} cannot be written ({why}): name another with --workdir=DIR'
  )


def _lock(file, path):
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    raise InputError(
      f'workdir {path} is in use by process {file.read()}: wait for it, or '
      'name another with --workdir=DIR'
    ) from error
  except OSError as error:
    warnings.warn(
      f'workdir {path} cannot be locked ({error.strerror}): start no second '
      'run in it',
      stacklevel=2,
    )


def _check_config(path, config):
  """Returns whether a directory has a config, and checks that it is the same.

  Raises:
    InputError: if it is another config, or cannot be read.
  """
  try:
    old = parse_object((path / 'config.json').read_bytes())
  except (FileNotFoundError, NotADirectoryError):
    return False
  except (OSError, ValueError) as error:
    raise _unreadable(path, error) from error
  if keys := differences(old, json.loads(json.dumps(config))):
    raise InputError(
      f'workdir {path} belongs to another config, which differs in '
      f'{", ".join(keys)}: name another with --workdir=DIR'
    )
  return True


def differences(old: dict, new: dict) -> list[str]:
  """Returns the keys whose values differ or that one dict lacks, sorted.

  Keys of nested dicts are joined by dots.

  >>> differences({'a': 1, 'b': {'c': 2}}, {'a': 1, 'b': {'c': 3}, 'd': {}})
  ['b.c', 'd']
  """
  keys = []
  for key in sorted(old.keys() | new.keys()):
    pair = old.get(key, _ABSENT), new.get(key, _ABSENT)
    if all(isinstance(value, dict) for value in pair):
      keys += [f'{key}.{inner}' for inner in differences(*pair)]
    elif pair[0] != pair[1]:
      keys.append(key)
  return keys


def parse_object(text: bytes) -> dict:
  """Parses a JSON object.

  Raises:
    ValueError: if the text is not one.
  """
  try:
    content = json.loads(text)
  except RecursionError as error:
    raise ValueError('it nests too deeply') from error
  if not isinstance(content, dict):
    raise ValueError('it is not a JSON object')
  return content


def write(path: pathlib.Path, name: str, content: bytes) -> None:
  """Writes `path/name`, atomically."""
  part = path / f'{name}.part'
  with open(part, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path / name)


def write_json(path: pathlib.Path, name: str, content: Any) -> None:
  """Writes `path/name` as JSON, atomically.

  Raises:
    ValueError: if the content has a NaN or an infinity.
  """
  text = json.dumps(content, indent=2, allow_nan=False) + '\n'
  write(path, name, text.encode())


def write_arrays(path: pathlib.Path, name: str, **arrays: np.ndarray) -> None:
  """Writes `path/name`, a compressed `.npz`, atomically."""
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  write(path, name, file.getvalue())


def log(path: pathlib.Path, **record: Any) -> None:
  """Appends a record to `metrics.jsonl`."""
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write(json.dumps(record) + '\n')


def read_log(path: pathlib.Path, **match: Any) -> list[dict]:
  """Returns the records of `metrics.jsonl` that have these values, in order.

  Skips lines that are not JSON objects, and a last line without an end, which a
  killed run may have left.
  """
  file, records = path / 'metrics.jsonl', []
  lines = file.read_bytes().split(b'\n')[:-1] if file.exists() else []
  for line in lines:
    with contextlib.suppress(ValueError):
      records.append(parse_object(line))
  return [record for record in records if match.items() <= record.items()]


def rewind_log(path: pathlib.Path, key: str, last: int, **match: Any) -> None:
  """Drops the records that have these values and a `key` beyond `last`."""
  lines = [
    json.dumps(record) + '\n'
    for record in read_log(path)
    if not match.items() <= record.items() or record[key] <= last
  ]
  write(path, 'metrics.jsonl', ''.join(lines).encode())


def log_error(path: pathlib.Path, error: Exception) -> pathlib.Path:
  """Appends the traceback of an error to `error.log`; returns its path."""
  now = datetime.datetime.now().isoformat(' ', 'seconds')
  with open(path / 'error.log', 'a') as file:
    file.write(f'{now}\n{"".join(traceback.format_exception(error))}\n')
  return path / 'error.log'

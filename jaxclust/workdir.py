"""The run directory: config, metrics, checkpoints and results of one run.

Results are whole or absent: a file is written beside its place and moved there.
The log alone grows line by line. The directory belongs to one process at a time
and to one config for ever. A checkpoint is a folder that Orbax writes, named
for its step, and a manifest beside it with the SHA-256 of every file.
"""

import contextlib
import csv
import datetime
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import socket
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxclust.numerics import InputError, one_line

_KEPT_CHECKPOINTS = 2

# Of a checkpoint and its manifest; another number is for another layout.
_FORMAT = 1


class _DamageError(Exception):
  """A checkpoint that is not as it was saved."""


def new_path(name: str) -> pathlib.Path:
  """A path under `runs/` that does not exist yet."""
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  path = pathlib.Path('runs', f'{name}-{now}')
  attempt = 2
  while path.exists():
    path = pathlib.Path('runs', f'{name}-{now}-{attempt}')
    attempt += 1
  return path


def check(path: pathlib.Path, config: dict) -> bool:
  """Looks whether a run directory could be claimed, and touches nothing.

  Returns:
    Whether its run is finished, so that there is nothing to claim it for.

  Raises:
    InputError: as `claim` does, but for a run that works in it.
  """
  path = pathlib.Path(path).absolute()
  if _check_config(path, config) and is_finished(path):
    return True
  place = next(p for p in (path, *path.parents) if p.exists())
  if not place.is_dir():
    raise _unwritable(path, f'{place} is a file')
  if not os.access(place, os.W_OK | os.X_OK):
    raise _unwritable(path, f'{place} is read-only')
  return False


def is_finished(path: pathlib.Path) -> bool:
  """Whether a run has written its summary, which is the last that it does."""
  return pathlib.Path(path, 'summary.json').exists()


@contextlib.contextmanager
def claim(path: pathlib.Path, config: dict) -> Iterator[pathlib.Path]:
  """Makes a run directory, or opens the one of the same config, and locks it.

  Raises:
    InputError: if it cannot be written, another run works in it, or it belongs
      to another config.
  """
  path = pathlib.Path(path).absolute()
  with contextlib.ExitStack() as stack:
    try:
      path.mkdir(parents=True, exist_ok=True)
      stack.enter_context(_locked(path))
      if not _check_config(path, config):
        write_json(path, 'config.json', config)
    except OSError as error:
      raise _unwritable(path, error.strerror) from error
    yield path


def _unwritable(path, why):
  return InputError(
    f'workdir {path} cannot be written ({why}): name another with --workdir=DIR'
  )


@contextlib.contextmanager
def _locked(path):
  """Holds the lock of a directory, which names its holder. The system takes it
  from a process that has ended, so that none is stale."""
  with open(path / '.lock', 'a+') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      lock.seek(0)
      raise InputError(
        f'workdir {path} is in use by process {lock.read()}: wait for it, or '
        'name another with --workdir=DIR'
      ) from error
    except OSError as error:
      warnings.warn(
        f'workdir {path} cannot be locked ({error.strerror}): start no second '
        'run in it',
        stacklevel=2,
      )
    lock.truncate(0)
    lock.write(f'{os.getpid()} on {socket.gethostname()}')
    lock.flush()
    yield


def _check_config(path, config):
  """Whether a directory is that of a config; raises if it is another's."""
  try:
    old = parse_object((path / 'config.json').read_bytes())
  except (FileNotFoundError, NotADirectoryError):
    return False
  except (OSError, ValueError) as error:
    raise InputError(
      f'{path / "config.json"} cannot be read ({error}): name another '
      'directory with --workdir=DIR'
    ) from error
  new = json.loads(json.dumps(config))
  if old == new:
    return True
  old, new = dict(_flatten(old)), dict(_flatten(new))
  keys = sorted(k for k in old | new if old.get(k) != new.get(k))
  raise InputError(
    f'workdir {path} belongs to another config, which differs in '
    f'{", ".join(keys)}: name another with --workdir=DIR'
  )


def _flatten(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def write_json(path: pathlib.Path, name: str, content: Any) -> None:
  """Writes `path/name`, whole or not at all."""
  write_text(path, name, json.dumps(content, indent=2, allow_nan=False) + '\n')


def write_text(path: pathlib.Path, name: str, text: str) -> None:
  """Writes `path/name`, whole or not at all."""
  _write(path / name, lambda file: file.write(text.encode()))


def parse_object(text: bytes) -> dict:
  """The JSON object that a text is.

  Raises:
    ValueError: if it is none.
  """
  try:
    content = json.loads(text)
  except RecursionError as error:
    raise ValueError('it nests too deeply') from error
  if not isinstance(content, dict):
    raise ValueError('it is no object')
  return content


def write_arrays(path: pathlib.Path, name: str, **arrays: np.ndarray) -> None:
  """Writes `path/name`, an `.npz`, whole or not at all."""
  _write(path / name, lambda file: np.savez_compressed(file, **arrays))


def write_bytes(path: pathlib.Path, name: str, content: bytes) -> None:
  """Writes `path/name`, whole or not at all."""
  _write(path / name, lambda file: file.write(content))


def write_table(path: pathlib.Path, name: str, columns: dict) -> None:
  """Writes `path/name`, a CSV of columns by name, whole or not at all."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(zip(*columns.values(), strict=True))
  # The name of a file may be any bytes, which Python reads as surrogates.
  write_bytes(path, name, text.getvalue().encode(errors='surrogateescape'))


def _write(path, write):
  part = path.with_name(path.name + '.part')
  with open(part, 'wb') as file:
    write(file)
    file.flush()
    os.fsync(file.fileno())
  os.replace(part, path)


def log(path: pathlib.Path, **record: Any) -> None:
  """Appends a line to `metrics.jsonl`."""
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write(json.dumps(record) + '\n')


def log_error(path: pathlib.Path, error: Exception) -> pathlib.Path:
  """Appends the traceback of an error to `error.log`; returns its path."""
  now = datetime.datetime.now().isoformat(' ', 'seconds')
  with open(path / 'error.log', 'a') as file:
    file.write(f'{now}\n{"".join(traceback.format_exception(error))}\n')
  return path / 'error.log'


def read_log(path: pathlib.Path, **match: Any) -> list[dict]:
  """The records that have these values, in order."""
  return [r for r in _read_log(path) if _matches(r, match)]


def rewind_log(path: pathlib.Path, key: str, last: int, **match: Any) -> None:
  """Drops the records that have these values and whose `key` is beyond
  `last`."""
  kept = [
    r for r in _read_log(path) if not _matches(r, match) or r[key] <= last
  ]
  write_text(path, 'metrics.jsonl', ''.join(json.dumps(r) + '\n' for r in kept))


def _matches(record, match):
  return match.items() <= record.items()


def _read_log(path):
  """The records of the log. The line that a killed run did not finish is none,
  nor is what else has got into the file."""
  try:
    lines = (path / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]
  except FileNotFoundError:
    return []
  records = []
  for line in lines:
    with contextlib.suppress(ValueError):
      records.append(parse_object(line))
  return records


def save(path: pathlib.Path, phase: str, step: int, state: Any) -> None:
  """Saves a pytree of arrays as the checkpoint of a phase at a step.

  The manifest is written when all else is on the disk, and makes it count.
  """
  folder = _checkpoints(path, phase)
  if (folder / str(step)).exists():
    _set_aside(folder, step)
  try:
    _write_arrays(folder / str(step), state)
  finally:
    for unfinished in folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(unfinished)
  _sync(path / 'metrics.jsonl')
  manifest = {
    'format': _FORMAT,
    'devices': _devices(),
    'arrays': _describe(state),
    'files': _digests(folder / str(step), sync=True),
  }
  manifest['digest'] = _digest_of(manifest)
  write_json(folder, f'{step}.json', manifest)
  for old in _steps(folder)[:-_KEPT_CHECKPOINTS]:
    # One of the two may be all that a killed run has left.
    (folder / f'{old}.json').unlink(missing_ok=True)
    shutil.rmtree(folder / str(old), ignore_errors=True)


def _write_arrays(folder, state):
  """Has Orbax write a checkpoint.

  Raises:
    OSError: if the disk takes no more.
  """
  try:
    with _checkpointer() as checkpointer:
      checkpointer.save(folder, ocp.args.StandardSave(state))
  except ValueError as error:  # as TensorStore has it
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is None:
      raise
    number = int(number[1])
    raise OSError(number, os.strerror(number), str(folder)) from error


def _sync(file):
  """Has a file on the disk, if there is one."""
  with contextlib.suppress(FileNotFoundError), open(file) as opened:
    os.fsync(opened.fileno())


def restore(
  path: pathlib.Path, phase: str, like: Any
) -> tuple[int, Any] | None:
  """Restores the newest checkpoint of a phase that is whole.

  What is damaged or no checkpoint is set aside, with a warning.

  Args:
    path: the run directory.
    phase: as saved.
    like: a pytree of arrays, or of their shapes and dtypes, as saved.

  Returns:
    The step and the state; None where nothing was saved.

  Raises:
    InputError: if the checkpoint holds other arrays, or is of another format.
  """
  folder = _checkpoints(path, phase)
  for step in reversed(_steps(folder)):
    try:
      return step, _read_step(folder, step, phase, like)
    except _DamageError as damage:
      place = _set_aside(folder, step)
      warnings.warn(
        f'checkpoint {folder / str(step)} is set aside as {place.name}: '
        f'{damage}',
        stacklevel=2,
      )
  return None


def _read_step(folder, step, phase, like):
  """The state that was saved at a step.

  Raises:
    _DamageError: if it is not whole.
    InputError: if it holds other arrays, or is of another format.
  """
  manifest = _read_manifest(folder, step)
  _check_files(folder / str(step), manifest['files'])
  _check_arrays(folder / str(step), manifest['arrays'], like)
  try:
    state = _read(folder / str(step), like)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _DamageError(f'Orbax cannot read it ({one_line(error)})') from error
  if manifest['devices'] != _devices():
    warnings.warn(
      f'{phase} goes on with {_devices()} from what {manifest["devices"]} '
      'had computed: sums are rounded in another way from here on',
      stacklevel=3,
    )
  return state


def _read(folder, like):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like
  )
  with _checkpointer() as checkpointer:
    return checkpointer.restore(folder, ocp.args.StandardRestore(shapes))


def _checkpoints(path, phase):
  return path / 'checkpoints' / phase


def _checkpointer():
  return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _steps(folder):
  """The steps in rising order that there are folders or manifests of."""
  if not folder.is_dir():
    return []
  found = {entry.name.removesuffix('.json') for entry in folder.iterdir()}
  return sorted(int(name) for name in found if name.isdecimal())


def _devices():
  """Kind and number of the devices, of which rounding depends."""
  device = jax.devices()[0]
  return f'{jax.device_count()} of {device.platform} ({device.device_kind})'


def _digest_of(manifest):
  """SHA-256 of all of a manifest but its own digest."""
  rest = {key: value for key, value in manifest.items() if key != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder, step):
  try:
    manifest = parse_manifest((folder / f'{step}.json').read_bytes())
  except (OSError, ValueError) as error:
    raise _DamageError(
      'its manifest is missing, as in an unfinished save, or is damaged '
      f'({error})'
    ) from error
  if manifest['format'] != _FORMAT:
    raise InputError(
      f'checkpoint {folder / str(step)} has format {manifest["format"]}, and '
      f'this version of jaxclust reads format {_FORMAT}: go on with the '
      'version that wrote it, or name another directory with --workdir=DIR'
    )
  return manifest


def parse_manifest(text: bytes) -> dict:
  """The manifest that a text is; only its format if that is another one.

  Raises:
    ValueError: if it is none, or not as it was written.
  """
  manifest = parse_object(text)
  if manifest.get('digest') != _digest_of(manifest):
    raise ValueError('its digest is that of another text')
  fields = {'format': int}
  if manifest.get('format') == _FORMAT:
    fields |= {'devices': str, 'arrays': dict, 'files': dict}
  for name, kind in fields.items():
    if not isinstance(manifest.get(name), kind):
      raise ValueError(f'its field {name} is {manifest.get(name)!r}')
  return manifest


def _check_files(folder, files):
  """Raises a _DamageError unless a folder holds the files of a manifest."""
  found = _digests(folder)
  for name in files:
    if name not in found:
      raise _DamageError(f'its file {name} is missing')
    if found[name] != files[name]:
      raise _DamageError(f'its file {name} is damaged')
  for name in found.keys() - files.keys():
    raise _DamageError(f'its file {name} is foreign')


def _digests(folder, sync=False):
  """Size and SHA-256 of each file below a folder."""
  digests = {}
  for file in sorted(folder.rglob('*')):
    if file.is_file():
      with open(file, 'rb') as opened:
        if sync:
          os.fsync(opened.fileno())
        sha = hashlib.file_digest(opened, 'sha256').hexdigest()
        size = os.fstat(opened.fileno()).st_size
      digests[file.relative_to(folder).as_posix()] = [size, sha]
  return digests


def _describe(state):
  """Shape and dtype of each array of a pytree by its place."""
  return {
    jax.tree_util.keystr(place): [list(a.shape), str(a.dtype)]
    for place, a in jax.tree_util.tree_leaves_with_path(state)
  }


def _check_arrays(folder, saved, like):
  wanted = _describe(like)
  for place in sorted(saved.keys() | wanted.keys()):
    if saved.get(place) != wanted.get(place):
      raise InputError(
        f'checkpoint {folder} holds {saved.get(place)} at {place}, '
        f'and this run needs {wanted.get(place)}: name another directory with '
        '--workdir=DIR'
      )


def _set_aside(folder, step):
  """Moves what there is of a step out of the way; returns where to."""
  attempt = 1
  while (place := folder / f'{step}-set-aside-{attempt}').exists():
    attempt += 1
  place.mkdir(parents=True)
  for name in (str(step), f'{step}.json'):
    if (folder / name).exists():
      os.replace(folder / name, place / name)
  return place

"""The run directory: config, metrics, checkpoints and results of one run.

Results are whole or absent: a file is written beside its place and moved there.
The log alone grows line by line. The directory belongs to one process at a time
and to one config for ever. A checkpoint is a folder that Orbax writes, named
for its step, and a manifest beside it with the SHA-256 of every file.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxclust.numerics import InputError

_KEPT_CHECKPOINTS = 2

# Of a checkpoint and its manifest; another number is for another layout.
_FORMAT = 1


def new_path(name: str) -> pathlib.Path:
  """A path under `runs/` that does not exist yet."""
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  path = pathlib.Path('runs', f'{name}-{now}')
  attempt = 2
  while path.exists():
    path = pathlib.Path('runs', f'{name}-{now}-{attempt}')
    attempt += 1
  return path


@contextlib.contextmanager
def claim(path: pathlib.Path, config: dict) -> Iterator[pathlib.Path]:
  """Makes a run directory, or opens the one of the same config, and locks it.

  Raises:
    InputError: if it cannot be written, another run works in it, or it belongs
      to another config.
  """
  path = pathlib.Path(path).absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / '.lock', 'a')  # noqa: SIM115, closed below
  except OSError as error:
    raise InputError(
      f'workdir {path} cannot be written ({error.strerror}): '
      'name another with --workdir=DIR'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise InputError(
        f'workdir {path} is in use by another run: wait for it, or name '
        'another with --workdir=DIR'
      ) from error
    _claim_for_config(path, config)
    yield path


def _claim_for_config(path, config):
  config = json.loads(json.dumps(config))
  old = read_json(path, 'config.json')
  if old is None:
    write_json(path, 'config.json', config)
  elif old != config:
    old, new = dict(_flatten(old)), dict(_flatten(config))
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
  text = json.dumps(content, indent=2, allow_nan=False) + '\n'
  _write(path / name, lambda file: file.write(text.encode()))


def read_json(path: pathlib.Path, name: str) -> Any:
  """Reads `path/name`; None if there is none."""
  try:
    return json.loads((path / name).read_text())
  except FileNotFoundError:
    return None


def write_arrays(path: pathlib.Path, name: str, **arrays: np.ndarray) -> None:
  """Writes `path/name`, an `.npz`, whole or not at all."""
  _write(path / name, lambda file: np.savez_compressed(file, **arrays))


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


def read_log(path: pathlib.Path, **match: Any) -> list[dict]:
  """The records that have these values, in order."""
  return [r for r in _read_log(path) if _matches(r, match)]


def rewind_log(path: pathlib.Path, key: str, last: int, **match: Any) -> None:
  """Drops the records that have these values and whose `key` is beyond
  `last`."""
  kept = [
    r for r in _read_log(path) if not _matches(r, match) or r[key] <= last
  ]
  text = ''.join(json.dumps(r) + '\n' for r in kept)
  _write(path / 'metrics.jsonl', lambda file: file.write(text.encode()))


def _matches(record, match):
  return match.items() <= record.items()


def _read_log(path):
  try:
    lines = (path / 'metrics.jsonl').read_text().splitlines(keepends=True)
  except FileNotFoundError:
    return []
  # A line that a killed run did not finish has no end.
  return [json.loads(line) for line in lines if line.endswith('\n')]


def save(path: pathlib.Path, phase: str, step: int, state: Any) -> None:
  """Saves a pytree of arrays as the checkpoint of a phase at a step.

  The manifest is written when all else is on the disk, and makes it count.
  """
  folder = _checkpoints(path, phase)
  if (folder / str(step)).exists():
    _set_aside(folder, step)
  with _checkpointer() as checkpointer:
    checkpointer.save(folder / str(step), ocp.args.StandardSave(state))
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
  for unfinished in folder.glob('*.orbax-checkpoint-tmp*'):
    shutil.rmtree(unfinished)


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
    manifest = _read_manifest(folder, step)
    damage = _damage(folder, step, manifest)
    if damage is None:
      _check_arrays(folder, step, manifest['arrays'], like)
      if manifest['devices'] != _devices():
        warnings.warn(
          f'{phase} goes on with {_devices()} from what {manifest["devices"]} '
          'had computed: sums are rounded in another way from here on',
          stacklevel=2,
        )
      return step, _read(folder / str(step), like)
    place = _set_aside(folder, step)
    warnings.warn(
      f'checkpoint {folder / str(step)} is set aside as {place.name}: {damage}',
      stacklevel=2,
    )
  return None


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
  """The manifest of a step as it was written; None if it cannot be read."""
  try:
    manifest = json.loads((folder / f'{step}.json').read_text())
    return manifest if manifest['digest'] == _digest_of(manifest) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _damage(folder, step, manifest):
  """What is wrong with the checkpoint of a step; None if nothing is.

  Raises:
    InputError: if it is of another format.
  """
  if manifest is None:
    return 'its manifest is missing, as in an unfinished save, or is damaged'
  if manifest['format'] != _FORMAT:
    raise InputError(
      f'checkpoint {folder / str(step)} has format {manifest["format"]}, and '
      f'this version of jaxclust reads format {_FORMAT}: go on with the '
      'version that wrote it, or name another directory with --workdir=DIR'
    )
  files = manifest['files']
  found = _digests(folder / str(step))
  if found == files:
    return None
  for name in files:
    if name not in found:
      return f'its file {name} is missing'
    if found[name] != files[name]:
      return f'its file {name} is damaged'
  return f'its file {min(found.keys() - files.keys())} is foreign'


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


def _check_arrays(folder, step, saved, like):
  wanted = _describe(like)
  for place in sorted(saved.keys() | wanted.keys()):
    if saved.get(place) != wanted.get(place):
      raise InputError(
        f'checkpoint {folder / str(step)} holds {saved.get(place)} at {place}, '
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

"""The run directory: config, metrics, checkpoints and results of one run.

Results are whole or absent: a file is written beside its place and moved there.
The log alone grows line by line. The directory belongs to one process at a time
and to one config for ever.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxclust.numerics import InputError

_KEPT_CHECKPOINTS = 2


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
  """Saves a pytree of arrays as the checkpoint of a phase at a step."""
  with _manager(path, phase) as manager:
    manager.save(step, args=ocp.args.StandardSave(state), force=True)


def restore(
  path: pathlib.Path, phase: str, like: Any
) -> tuple[int, Any] | None:
  """Restores the newest checkpoint of a phase.

  Args:
    path: the run directory.
    phase: as saved.
    like: a pytree of arrays, or of their shapes and dtypes, as saved.

  Returns:
    The step and the state; None where nothing was saved.
  """
  if not _checkpoints(path, phase).exists():
    return None
  with _manager(path, phase) as manager:
    step = manager.latest_step()
    if step is None:
      return None
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like
    )
    return step, manager.restore(step, args=ocp.args.StandardRestore(shapes))


def _checkpoints(path, phase):
  return path / 'checkpoints' / phase


def _manager(path, phase):
  return ocp.CheckpointManager(
    _checkpoints(path, phase),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=_KEPT_CHECKPOINTS,
      create=True,
      enable_async_checkpointing=False,
    ),
  )

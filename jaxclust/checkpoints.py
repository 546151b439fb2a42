"""Checkpoints of the phases of a run: pytrees of arrays, saved by Orbax.

A checkpoint is a folder named for its step, `checkpoints/PHASE/STEP`, and a
manifest `STEP.json` with the shapes of its arrays and the SHA-256 of its files.
The manifest is written last; a folder without one is an unfinished save.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxclust import paths, runtime, workdir
from jaxclust.errors import InputError, one_line

_KEPT_CHECKPOINTS = 2

# Version of the layout of a checkpoint and its manifest.
_FORMAT = 1


class _DamageError(Exception):
  """A checkpoint is not as it was saved."""


def save(path: pathlib.Path, phase: str, step: int, state: Any) -> None:
  """Saves a pytree of arrays as the checkpoint of a phase at a step.

  Flushes the log of the run to the disk too, and removes old checkpoints.

  Raises:
    OSError: if the disk is full or cannot be written.
  """
  folder = path / 'checkpoints' / phase
  if (folder / str(step)).exists():
    _set_aside(folder, step)
  try:
    _write(folder / str(step), state)
  finally:
    for unfinished in folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(unfinished)
  with open(path / 'metrics.jsonl', 'a') as log:
    os.fsync(log.fileno())
  manifest = {
    'format': _FORMAT,
    'devices': _devices(),
    'arrays': _describe(state),
    'files': _digests(folder / str(step), sync=True),
  }
  manifest['digest'] = _digest_of(manifest)
  workdir.write_json(folder, f'{step}.json', manifest)
  for old in _steps(folder)[:-_KEPT_CHECKPOINTS]:
    # A killed run may have left only one of the two.
    (folder / f'{old}.json').unlink(missing_ok=True)
    shutil.rmtree(folder / str(old), ignore_errors=True)


def _write(folder, state):
  """Writes arrays with Orbax, whose errors of the disk become OSErrors."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  try:
    with paths.plain(folder) as place, _checkpointer() as checkpointer:
      checkpointer.save(place, ocp.args.StandardSave(jax.device_get(state)))
  except ValueError as error:
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found is None:
      raise
    number = int(found[1])
    raise OSError(number, os.strerror(number), str(folder)) from error


def _checkpointer():
  """Orbax, which is not to wait for other processes than the first."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix='first'
  )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  )


def restore(
  path: pathlib.Path, phase: str, like: Any
) -> tuple[int, Any] | None:
  """Restores the newest undamaged checkpoint of a phase.

  Renames damaged ones and warns about each. The pytree `like` has arrays, or
  their shapes and dtypes, as saved.

  Returns:
    The step and the state; None if there is no checkpoint.

  Raises:
    InputError: if the checkpoint has other arrays or another format.
  """
  folder = path / 'checkpoints' / phase
  for step in reversed(_steps(folder)):
    try:
      manifest = _check_step(folder, step, like)
      state = _read(folder / str(step), like)
    except _DamageError as damage:
      place = _set_aside(folder, step)
      warnings.warn(
        f'checkpoint {folder / str(step)} is set aside as {place.name}: '
        f'{damage}',
        stacklevel=2,
      )
      continue
    if manifest['devices'] != _devices():
      warnings.warn(
        f'{phase} goes on with {_devices()}, but its checkpoint was computed '
        f'with {manifest["devices"]}: results may differ by rounding',
        stacklevel=2,
      )
    return step, state
  return None


def _steps(folder):
  """Returns the steps that have a folder or a manifest, in rising order."""
  if not folder.is_dir():
    return []
  found = {entry.name.removesuffix('.json') for entry in folder.iterdir()}
  return sorted(int(name) for name in found if name.isdecimal())


def _set_aside(folder, step):
  """Moves the folder and the manifest of a step; returns their new place."""
  place = workdir.numbered(folder / f'{step}-set-aside')
  place.mkdir()
  for name in (str(step), f'{step}.json'):
    if (folder / name).exists():
      os.replace(folder / name, place / name)
  return place


def _check_step(folder, step, like):
  """Checks a checkpoint before Orbax reads it; returns its manifest."""
  try:
    manifest = parse_manifest((folder / f'{step}.json').read_bytes())
  except (OSError, ValueError) as error:
    raise _DamageError(
      'its manifest is missing, as in an unfinished save, or is damaged '
      f'({error})'
    ) from error
  name = f'checkpoint {folder / str(step)}'
  if manifest['format'] != _FORMAT:
    raise InputError(
      f'{name} has format {manifest["format"]}, and this version of jaxclust '
      f'reads format {_FORMAT}: use the version that wrote it, or name another '
      'directory with --workdir=DIR'
    )
  files, found = manifest['files'], _digests(folder / str(step))
  for file in workdir.differences(files, found):
    fault = 'damaged' if file in found else 'missing'
    raise _DamageError(
      f'its file {file} is {fault if file in files else "foreign"}'
    )
  saved, wanted = manifest['arrays'], _describe(like)
  for place in workdir.differences(saved, wanted):
    raise InputError(
      f'{name} holds {saved.get(place)} at {place}, and this run needs '
      f'{wanted.get(place)}: name another directory with --workdir=DIR'
    )
  return manifest


def parse_manifest(text: bytes) -> dict:
  """Parses a manifest; one of another format needs no fields but `format`.

  Raises:
    ValueError: if the text is not a manifest, or was changed after the save.
  """
  manifest = workdir.parse_object(text)
  if manifest.get('digest') != _digest_of(manifest):
    raise ValueError('its digest does not match its content')
  fields = {'format': int}
  if manifest.get('format') == _FORMAT:
    fields |= {'devices': str, 'arrays': dict, 'files': dict}
  for name, kind in fields.items():
    if not isinstance(manifest.get(name), kind):
      raise ValueError(f'its field {name} is {manifest.get(name)!r}')
  return manifest


def _read(folder, like):
  """Reads arrays onto the first device."""
  shapes = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), like)
  try:
    with paths.plain(folder) as place, _checkpointer() as checkpointer:
      found = checkpointer.restore(place, ocp.args.StandardRestore(shapes))
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _DamageError(f'Orbax cannot read it ({one_line(error)})') from error
  return jax.tree.map(jnp.asarray, found)


def _devices():
  """Names the kind and the number of devices, which change rounding."""
  return f'{jax.device_count()} of {runtime.device()}'


def _describe(state):
  """Maps the path of each array in a pytree to its shape and dtype."""
  return {
    jax.tree_util.keystr(place): [list(a.shape), str(a.dtype)]
    for place, a in jax.tree_util.tree_leaves_with_path(state)
  }


def _digests(folder, sync=False):
  """Maps each file below a folder to its size and SHA-256."""
  digests = {}
  for file in sorted(p for p in folder.rglob('*') if p.is_file()):
    with open(file, 'rb') as opened:
      if sync:
        os.fsync(opened.fileno())
      sha = hashlib.file_digest(opened, 'sha256').hexdigest()
    digests[file.relative_to(folder).as_posix()] = [file.stat().st_size, sha]
  return digests


def _digest_of(manifest):
  """Returns the SHA-256 of a manifest without its own digest."""
  rest = {key: value for key, value in manifest.items() if key != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

"""The files that every run leaves: its page and its summary.

A run may be part of another one, in a folder of its own there.
"""

import contextlib
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxclust import (
  checks,
  data,
  pipeline,
  processes,
  runtime,
  storage,
  workdir,
)
from jaxclust.data import Dataset
from jaxclust.errors import InputError
from jaxclust.report import console, figures, page


def fill(
  path: pathlib.Path,
  config: Any,
  title: str,
  dataset: Dataset,
  find: Callable,
  seconds: dict,
  messages: list[str],
  command: str | None = None,
) -> dict:
  """Writes all files of a run; returns its summary, which is the last.

  Args:
    path: of the run directory, which is claimed.
    config: of the run.
    title: of the experiment.
    dataset: its images.
    find: `(path, seconds) -> summary, sections of the page`.
    seconds: of the phases, which `find` adds to.
    messages: warnings so far.
    command: what was typed, for the page to tell.

  Raises:
    InputError: as `check_origin` does.
  """
  origin = check_origin(path, config, dataset)
  common = [config.to_dict(), origin['data'], origin['versions']]
  processes.check_same('config, images or versions', common)
  found, sections = find(path, seconds)
  if not processes.leads():
    return {}
  summary = _circumstances(config, title, dataset, origin) | found
  summary['command'] = command
  summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
  summary['warnings'] = messages
  _write_page(path, config, summary, sections, command)
  workdir.write_json(path, 'summary.json', summary)
  return summary


def redraw(
  path: pathlib.Path, config: Any, dataset: Dataset, find: Callable
) -> None:
  """Draws figures and page of a finished run again, and changes nothing else.

  Arguments are as for `fill`.

  Raises:
    InputError: as `check_origin` does.
  """
  check_origin(path, config, dataset, is_finished=True)
  summary = workdir.parse_object((path / 'summary.json').read_bytes())
  with workdir.mirrored(path) as here:
    _, sections = find(here, {})
    _write_page(here, config, summary, sections, summary.get('command'))
    shutil.copytree(here / 'figures', path / 'figures', dirs_exist_ok=True)
    if (here / 'report.html').exists():
      workdir.write(path, 'report.html', (here / 'report.html').read_bytes())


def _write_page(path, config, summary, sections, command):
  with figures.drawing('report.html'):
    html = page.render(
      summary, config.to_dict(), published(config), sections, command
    )
    # Names of files may hold bytes that are no text.
    workdir.write(path, 'report.html', html.encode(errors='replace'))


def fill_within(config: Any, path: pathlib.Path) -> dict:
  """The summary of a run of images to clusters, in a folder of another run;
  makes the run unless it is finished. {} in processes that do not lead."""
  if not processes.first_says(workdir.check(path, config.to_dict())):
    with recorded_warnings() as messages:
      dataset, find = pipeline.prepare(config)
      with workdir.claim(path, config.to_dict()):
        title = pipeline.title(config)
        fill(path, config, title, dataset, find, {}, messages)
  if not processes.leads():
    return {}
  return workdir.parse_object((path / 'summary.json').read_bytes())


def published(config: Any) -> dict:
  """Published scores of the config's images; {} if there are none."""
  found = config.get('reference', ConfigDict()).to_dict()
  own = config.get('data', {}).get('name')
  return found if found and found.get('dataset') == own else {}


# Versions in `origin.json` and summaries: those at work, and those before.
_VERSIONS = ('versions', 'earlier_versions')


def check_origin(
  path: pathlib.Path, config: Any, dataset: Dataset, is_finished: bool = False
) -> dict:
  """What a run depends on beside its config: digests of its images, and of the
  model of `config.run`; versions. `origin.json` keeps it from the start on.

  Raises:
    InputError: if any of it has changed since then; where a run is finished,
      other versions are a warning.
  """
  origin = {'data': data.digest(dataset), 'versions': runtime.versions()}
  if 'run' in config:
    origin['run'] = storage.digest(config.run)
  if config.get('experiment') == 'compare':
    origin['runs'] = [storage.digest(run) for run in config.runs]
  if not (path / 'origin.json').exists():
    workdir.write_json(path, 'origin.json', origin)
  old = _read_origin(path / 'origin.json')
  for key, what in (
    ('data', 'the images'),
    ('run', 'the model of the run'),
    ('runs', 'one of the runs'),
  ):
    if old.get(key) != origin.get(key):
      raise InputError(
        f'{what} {dataset.name if key == "data" else config[key]} changed '
        f'since {path} began: put the old ones back, or name another directory '
        'with --workdir=DIR'
      )
  if changes := _changes_of_versions(old):
    if not is_finished:
      raise InputError(
        f'{path} began with {changes}: install what it began with, name '
        'another directory with --workdir=DIR, or go on with --allow_upgrade'
      )
    checks.warn(f'{path} is of {changes}: results may differ now')
  return old


def accept_versions(path: pathlib.Path) -> None:
  """Lets a run, and those in its folders, go on with the versions of now;
  `origin.json` and summaries keep the earlier ones. Warns of the change."""
  for file in path.rglob('origin.json'):
    origin = _read_origin(file)
    if changes := _changes_of_versions(origin):
      checks.warn(f'{file.parent} began with {changes}: results may differ')
      earlier = [*origin.get('earlier_versions', []), origin['versions']]
      own = {'versions': runtime.versions(), 'earlier_versions': earlier}
      workdir.write_json(file.parent, file.name, origin | own)


def _changes_of_versions(origin):
  """How versions differ from those of now, in words; empty if they do not."""
  old, new = origin['versions'], runtime.versions()
  return ', '.join(
    f'{name} {old.get(name)} (now {new.get(name)})'
    for name in workdir.differences(old, new)
  )


def _read_origin(file):
  try:
    origin = workdir.parse_object(file.read_bytes())
    if isinstance(origin['versions'], dict):
      return origin
  except (ValueError, KeyError):
    pass
  raise InputError(
    f'{file} is damaged, so that nothing tells what the run began with: name '
    'another directory with --workdir=DIR'
  )


def _circumstances(config, title, dataset, origin):
  """What was run, on what and with what."""
  test = dataset.test_images
  return {
    'experiment': title,
    'dataset': {
      'name': dataset.name,
      'num_train': len(dataset.images),
      **({} if test is None else {'num_test': len(test)}),
      'image_shape': list(dataset.images.shape[1:]),
      'digest': origin['data'],
      **_files(dataset),
    },
    **({'seed': config.seed} if 'seed' in config else {}),
    'device': runtime.device(),
    **{name: origin[name] for name in _VERSIONS if name in origin},
  }


def _files(dataset):
  """How many files of a folder were used, and which were not, and why."""
  if not dataset.files:
    return {}
  left_out = [{'file': file, 'why': why} for file, why in dataset.left_out]
  return {'files': {'used': len(dataset.files), 'left_out': left_out}}


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
  """Prints warnings as lines, and collects them; of those that differ in
  numbers alone the first, with how many followed."""
  messages, kinds = [], {}

  def show(message, *origin, **options):
    text = str(message)
    own = kinds.setdefault(re.sub(r'\d+', '0', text), [text, len(messages), 0])
    first, number, count = own
    if number == len(messages):
      messages.append(text)
      console.say(f'warning: {text}')
    else:
      own[2] = count + 1
      messages[number] = f'{first} (and {count + 1} more like this)'

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages

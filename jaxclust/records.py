"""The files that every run leaves: its page and its summary.

A run may be part of another one, in a folder of its own there.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxclust import data, pipeline, runtime, workdir
from jaxclust.data import Dataset
from jaxclust.report import console, page


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
  """
  found, sections = find(path, seconds)
  summary = _circumstances(config, title, dataset) | found
  summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
  summary['warnings'] = messages
  html = page.render(
    summary, config.to_dict(), published(config), sections, command
  )
  workdir.write(path, 'report.html', html.encode())
  workdir.write_json(path, 'summary.json', summary)
  return summary


def fill_within(config: Any, path: pathlib.Path) -> dict:
  """The summary of a run of images to clusters, in a folder of another run;
  makes the run unless it is finished."""
  if not workdir.check(path, config.to_dict()):
    with recorded_warnings() as messages:
      dataset, find = pipeline.prepare(config)
      with workdir.claim(path, config.to_dict()):
        title = pipeline.title(config)
        fill(path, config, title, dataset, find, {}, messages)
  return workdir.parse_object((path / 'summary.json').read_bytes())


def published(config: Any) -> dict:
  """Published scores of the config's images; {} if there are none."""
  found = config.get('reference', ConfigDict()).to_dict()
  return found if found.get('dataset') == config.data.name else {}


def _circumstances(config, title, dataset):
  """What was run, on what and with what."""
  test = dataset.test_images
  return {
    'experiment': title,
    'dataset': {
      'name': dataset.name,
      'num_train': len(dataset.images),
      **({} if test is None else {'num_test': len(test)}),
      'image_shape': list(dataset.images.shape[1:]),
      'digest': data.digest(dataset),
    },
    **({'seed': config.seed} if 'seed' in config else {}),
    'device': runtime.device(),
    'versions': runtime.versions(),
  }


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
  """Prints warnings as lines, and collects them."""
  messages = []

  def show(message, *place, **options):
    messages.append(str(message))
    console.say(f'warning: {message}')

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages

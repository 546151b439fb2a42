"""Experiments: from a config to the files of a run.

An experiment is one line: data, stages of methods one after another, points, a
clusterer if the last method does not assign images itself, assignment, scores,
files. It resumes what an earlier process of the same run has saved; a sweep and
a benchmark begin again.

Axes: N images, H height, W width, C channels, D features, K clusters.
"""

import contextlib
import errno
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxclust import (
  checks,
  data,
  pipeline,
  runtime,
  signals,
  studies,
  validation,
  workdir,
)
from jaxclust.errors import InputError, RunError, one_line
from jaxclust.pipeline import timed
from jaxclust.report import board, console, page

# Errors of a disk that takes no more.
_DISK_ERRORS = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EIO,
}


class Experiment(NamedTuple):
  """What runs from the data to the summary."""

  show: Callable  # (config, summary): the last thing that a person sees
  needs: str  # what only configs of this experiment have
  check: Callable | None = None  # (config, dataset): before any compiling
  run: Callable | None = None  # (config, dataset, path, seconds) -> its part of
  # the summary, and the sections of the page
  load: Callable = lambda config: data.load(**config.data)  # -> the dataset
  title: Callable = lambda config: config.experiment
  bind: Callable = lambda config: {}  # -> fields that the config decides


EXPERIMENTS = {
  'cluster': Experiment(
    check=validation.check_pipeline,
    run=pipeline.run,
    show=lambda config, summary: console.closing_table(
      summary, reference(config)
    ),
    needs='clusterer',
    title=pipeline.title,
  ),
  'predict': Experiment(
    show=lambda config, summary: _show_prediction(config, summary),
    needs='run',
    bind=studies.prediction,
  ),
  'sweep': Experiment(
    check=studies.check_sweep,
    run=studies.run_sweep,
    show=lambda config, summary: console.sweep_table(
      summary['sweep'], summary['choices']
    ),
    needs='sweep',
  ),
  'benchmark': Experiment(
    check=studies.check_benchmark,
    run=studies.run_benchmark,
    show=lambda config, summary: console.benchmark_table(
      summary['rows'], summary['limits']
    ),
    needs='benchmark',
  ),
}


def run(
  config: ConfigDict, directory: str | None = None, command: str | None = None
) -> pathlib.Path:
  """Runs an experiment, or resumes one that an earlier process left.

  Args:
    config: as in `configs/`.
    directory: the run directory; a new one under `runs/` if None.
    command: what was typed, for the page to tell.

  Returns:
    The run directory.

  Raises:
    InputError: for a config, data or a directory that cannot be used; nothing
      is written then.
    RunError: if the training diverges, the disk takes no more, or the results
      of a benchmark differ; and for an unexpected error, whose traceback is
      kept in the run directory.
  """
  if directory is not None and workdir.check(directory, config.to_dict()):
    console.say('already finished')
    return pathlib.Path(directory)
  runtime.prepare()
  seconds = {}
  with _recorded_warnings() as messages:
    experiment = _check(config)
    with timed(seconds, 'data'):
      dataset = experiment.load(config)
    experiment.check(config, dataset)
    title = experiment.title(config)
    if directory is None:
      name = pathlib.Path(dataset.name).stem  # it may be a path
      directory = workdir.new_path(f'{title}-{name}')
    with workdir.claim(directory, config.to_dict()) as path:
      console.say(
        f'{title} on {dataset.name} ({len(dataset.images):,} images), '
        f'{runtime.device()}, in {path}'
      )
      summary = {'experiment': title} | _circumstances(config, dataset)
      with contextlib.ExitStack() as stack:
        stack.enter_context(_explaining_how_to_resume(path))
        if config.get('tensorboard'):
          read = functools.partial(workdir.read_log, path)
          stack.enter_context(board.mirror(path / 'tensorboard', read))
        found, sections = experiment.run(config, dataset, path, seconds)
        summary |= found
        summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
        summary['warnings'] = messages
        html = page.render(
          summary, config.to_dict(), reference(config), sections, command
        )
        workdir.write_text(path, 'report.html', html)
        workdir.write_json(path, 'summary.json', summary)
      experiment.show(config, summary)
  return path


def _check(config):
  """Checks what all experiments have in common; returns the one to be run."""
  name = config.experiment
  checks.check_choice('config.experiment', name, EXPERIMENTS)
  if EXPERIMENTS[name].needs not in config:
    raise InputError(
      f'config.experiment is {name!r}, but there is no '
      f'config.{EXPERIMENTS[name].needs}: take a config that has it'
    )
  seed, num_seeds = config.get('seed', 0), config.get('num_seeds', 1)
  checks.check_count('config.num_seeds', num_seeds)
  if not 0 <= seed <= 2**32 - num_seeds:
    raise InputError(
      f'config.seed is {seed}: it must be at least 0, and the last of '
      f'{num_seeds} seeds below 2**32'
    )
  if config.get('tensorboard'):
    board.check()
  experiment = EXPERIMENTS[name]
  return experiment._replace(**experiment.bind(config))


def _circumstances(config, dataset):
  """What was run, on what and with what."""
  test = dataset.test_images
  return {
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


def reference(config: ConfigDict) -> dict:
  """The published scores of the same images, if there are any."""
  found = config.get('reference', ConfigDict()).to_dict()
  return found if found.get('dataset') == config.data.name else {}


def _show_scores(config, summary):
  console.closing_table(summary, reference(config))


def _show_prediction(config, summary):
  console.say('predictions.csv has the cluster of each image')
  if console.headline(summary, {}):
    _show_scores(config, summary)


@contextlib.contextmanager
def _explaining_how_to_resume(path: pathlib.Path) -> Iterator[None]:
  """Says what a run that ends early has left, and where."""
  place = os.path.relpath(path)
  again = f'the same command with --workdir={place} resumes from there'
  try:
    yield
  except signals.Stopped:
    console.say(again)
    raise
  except (InputError, RunError):
    raise
  except Exception as error:
    if getattr(error, 'errno', None) in _DISK_ERRORS:
      raise RunError(
        f'{place} cannot be written ({error.strerror}): make room, then {again}'
      ) from error
    log = workdir.log_error(path, error)
    raise RunError(
      f'unexpected {type(error).__name__} ({one_line(error)}): its traceback '
      f'is in {os.path.relpath(log)}; {again}'
    ) from error


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
  """Prints warnings as lines, and collects them."""
  messages = []

  def show(message, category, filename, lineno, file=None, line=None):
    del category, filename, lineno, file, line
    messages.append(str(message))
    console.say(f'warning: {message}')

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages

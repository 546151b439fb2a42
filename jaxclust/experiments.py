"""Experiments: from a config to the files of a run.

An experiment is one line: data, stages of methods one after another, points, a
clusterer if the last method does not assign images itself, assignment, scores,
files. It resumes what an earlier process of the same run has saved. Beside this
pipeline there are predictions; sweeps and benchmarks, which begin again; and
leaderboards, which make a run for each of several methods.

Axes: N images, D features, K clusters.
"""

import contextlib
import errno
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclust import (
  benchmark,
  checks,
  data,
  model,
  phases,
  pipeline,
  predictions,
  runtime,
  selection,
  signals,
  workdir,
)
from jaxclust.data import Dataset
from jaxclust.errors import InputError, RunError, one_line
from jaxclust.report import board, console, figures, page
from jaxclust.report.console import timed

# Errors of a disk that takes no more.
_DISK_ERRORS = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EIO,
}


def run(
  config: ConfigDict, directory: str | None = None, command: str | None = None
) -> pathlib.Path:
  """Runs an experiment, or resumes one that an earlier process left.

  A config is as in `configs/`. The run directory is a new one under `runs/` if
  None; the command is what was typed, for the page to tell.

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
    _check(config)
    experiment = EXPERIMENTS[config.experiment]
    with timed(seconds, 'data'):
      dataset, find = experiment.prepare(config)
    title = experiment.title(config)
    if directory is None:
      name = pathlib.Path(dataset.name).stem  # it may be a path
      directory = workdir.new_path(f'{title}-{name}')
    with workdir.claim(directory, config.to_dict()) as path:
      console.say(
        f'{title} on {dataset.name} ({len(dataset.images):,} images), '
        f'{runtime.device()}, in {path}'
      )
      mirrored = board.mirror(path) if config.get('tensorboard') else None
      with (
        _explaining_how_to_resume(path),
        mirrored or contextlib.nullcontext(),
      ):
        summary = _fill(path, config, dataset, find, seconds, messages, command)
      console.results(summary, _published(config))
  return path


def _fill(path, config, dataset, find, seconds, messages, command=None):
  """Writes all files of a run; returns its summary, which is the last."""
  found, sections = find(path, seconds)
  summary = _circumstances(config, dataset) | found
  summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
  summary['warnings'] = messages
  html = page.render(
    summary, config.to_dict(), _published(config), sections, command
  )
  workdir.write(path, 'report.html', html.encode())
  workdir.write_json(path, 'summary.json', summary)
  return summary


def _published(config):
  """Published scores of the config's images; {} if there are none."""
  published = config.get('reference', ConfigDict()).to_dict()
  return published if published.get('dataset') == config.data.name else {}


def _check(config):
  """Checks what all experiments have in common."""
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


def _circumstances(config, dataset):
  """What was run, on what and with what."""
  test = dataset.test_images
  return {
    'experiment': EXPERIMENTS[config.experiment].title(config),
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

  def show(message, *place, **options):
    messages.append(str(message))
    console.say(f'warning: {message}')

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages


def prepare_sweep(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of a sweep."""
  dataset = data.load(**config.data)
  num_features, _ = pipeline.check_stages(config, dataset)
  selection.check_options(len(dataset.images), num_features, **config.sweep)
  return dataset, functools.partial(_sweep, config, dataset)


def _sweep(config, dataset, path, seconds):
  """Clusters into each number of clusters, then scores all at once."""
  seeds, counts = [config.seed], tuple(config.sweep.num_clusters)
  represented = pipeline.represent(config, dataset, seeds, path, seconds)
  x = next(represented).points['train']
  workdir.rewind_log(path, 'num_clusters', 0, phase='sweep')
  records, labels = [], []
  key = jax.random.fold_in(jax.random.key(config.seed), phases.CLUSTERS)
  with (
    timed(seconds, 'sweep', quietly=True),
    console.progress('sweep', len(counts)) as show,
  ):
    for record in selection.sweep(key, x, **config.sweep):
      labels.append(record.pop('labels'))
      workdir.log(path, phase='sweep', **record)
      records.append(record)
      show(len(records), f'{record["num_clusters"]} clusters')
  with timed(seconds, 'silhouette'):
    scores = selection.silhouette(x, np.stack(labels), counts)
    for record, score in zip(records, scores.tolist(), strict=True):
      record['silhouette'] = score if np.isfinite(score) else None
  choices = selection.choose(records)
  chart = figures.sweep(path / 'figures' / 'sweep.png', records, choices)
  section = page.Section(
    'Criteria',
    'What each criterion says of each number of clusters, and its choice.',
    charts=[(chart, 'criteria over the number of clusters')],
  )
  return {'sweep': records, 'choices': choices}, [section]


def prepare_benchmark(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of a benchmark."""
  dataset = data.load(**config.data)
  model.check_images(dataset.images, True)
  contests = benchmark.plan(dataset.images.shape, **config.benchmark.to_dict())
  return dataset, functools.partial(_benchmark, config, dataset, contests)


def _benchmark(config, dataset, contests, path, seconds):
  """Measures this code against its peers; writes benchmark.json."""
  key, images = jax.random.key(config.seed), jnp.asarray(dataset.images)
  workdir.rewind_log(path, 'row', 0, phase='benchmark')
  rows = []
  with (
    timed(seconds, 'benchmark', quietly=True),
    console.progress('benchmark', len(contests)) as show,
  ):
    limits = benchmark.measure_limits(config.benchmark.limit_size)
    try:
      for contest in contests:
        row = contest(key, images)
        record = benchmark.measure(row, config.benchmark.rounds, limits)
        rows.append(record)
        workdir.log(path, phase='benchmark', row=len(rows), **record)
        show(len(rows), record['name'])
    except benchmark.MismatchError as error:
      raise RunError(str(error)) from error
  results = {'limits': limits, 'rows': rows, 'peers': benchmark.versions()}
  machine = {'device': runtime.device(), 'versions': runtime.versions()}
  workdir.write_json(path, 'benchmark.json', results | machine)
  chart = figures.benchmark(path / 'figures' / 'benchmark.png', rows)
  section = page.Section(
    'Speeds',
    'Times of the others for the same work, in multiples of ours.',
    charts=[(chart, 'ratios of seconds')],
  )
  return results, [section]


def prepare_leaderboard(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of all runs."""
  dataset = data.load(**config.data)
  if dataset.labels is None:
    raise InputError(
      f'{dataset.name} has no labels: a leaderboard compares clusters with them'
    )
  own = {'data': config.data, 'seed': config.seed}
  own |= {'num_seeds': config.num_seeds}
  runs = {}
  for name in config.methods:
    checks.check_choice('each of config.methods', name, config.runs)
    runs[name] = ConfigDict(config.runs[name].to_dict() | own)
    pipeline.prepare(runs[name])
  return dataset, functools.partial(_leaderboard, runs)


def _leaderboard(runs, path, seconds):
  """Makes a run for each method, or reads it if it is finished."""
  rows = []
  for name, config in runs.items():
    console.say(f'{name}: {pipeline.title(config)}')
    with timed(seconds, name, quietly=True):
      rows.append(_row(name, _run_within(config, path / name)))
  chart = figures.leaderboard(path / 'figures' / 'leaderboard.png', rows)
  section = page.Section(
    'Methods',
    'Mean and standard deviation over seeds. A folder of its name has the '
    'files of each method.',
    charts=[(chart, 'accuracy of the methods')],
    table=console.leaderboard(rows),
  )
  return {'leaderboard': rows}, [section]


def _run_within(config, path):
  """The summary of a run of images to clusters, in a folder of another run."""
  if not workdir.check(path, config.to_dict()):
    with _recorded_warnings() as messages:
      dataset, find = pipeline.prepare(config)
      with workdir.claim(path, config.to_dict()):
        _fill(path, config, dataset, find, {}, messages)
  return workdir.parse_object((path / 'summary.json').read_bytes())


def _row(name, summary):
  """What a leaderboard tells of a run: scores by split, seconds of a seed."""
  seeds = summary.get('seeds', [summary])
  scores = {
    split: {
      score: [seed[split][score] for seed in seeds]
      for score in ('acc', 'nmi', 'ari')
    }
    for split in ('train', 'test')
    if split in summary
  }
  own = [*summary['experiment'].split('-'), 'manifold']
  seconds = sum(summary['seconds'].get(phase, 0.0) for phase in own)
  return {'name': name, 'seconds': seconds / len(seeds), **scores}


class Experiment(NamedTuple):
  """One way from a config to results."""

  needs: str  # what only configs of this experiment have
  # config -> images, and `(path, seconds) -> summary, sections of the page`;
  # loads the images, and checks all options before anything compiles.
  prepare: Callable
  title: Callable = lambda config: config.experiment


EXPERIMENTS = {
  'cluster': Experiment('clusterer', pipeline.prepare, pipeline.title),
  'predict': Experiment('run', predictions.prepare),
  'sweep': Experiment('sweep', prepare_sweep),
  'benchmark': Experiment('benchmark', prepare_benchmark),
  'leaderboard': Experiment('runs', prepare_leaderboard),
}

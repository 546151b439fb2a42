"""Experiments: from a config to the files of a run.

An experiment is one line: data, stages of methods one after another, points, a
clusterer if the last method does not assign images itself, assignment, scores,
files. It resumes what an earlier process of the same run has saved. Beside this
pipeline there are predictions; sweeps and benchmarks, which go on with their
next fit or row; leaderboards and committees, which make several runs;
comparisons of finished runs; and reports, which draw a run again.

Axes: N images, D features, K clusters.
"""

import contextlib
import errno
import functools
import os
import pathlib
import shlex
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclust import (
  benchmark,
  checks,
  commands,
  comparison,
  data,
  model,
  phases,
  pipeline,
  predictions,
  processes,
  records,
  runtime,
  selection,
  several,
  signals,
  workdir,
)
from jaxclust.data import Dataset
from jaxclust.errors import InputError, RunError, one_line
from jaxclust.frames import unit_rows
from jaxclust.paths import as_path
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
  config: ConfigDict,
  directory: str | None = None,
  command: str | None = None,
  allow_upgrade: bool = False,
) -> pathlib.Path:
  """Runs an experiment, or resumes one that an earlier process left.

  A config is as in `configs/`. The run directory is a new one under `runs/` if
  None; the command is what was typed, for the page to tell. A run that began
  with other versions of libraries goes on if `allow_upgrade`.

  Returns:
    The run directory.

  Raises:
    InputError: for a config, data or a directory that cannot be used; nothing
      is written then.
    RunError: if the training diverges, the disk takes no more, or the results
      of a benchmark differ; and for an unexpected error, whose traceback is
      kept in the run directory.
  """
  if processes.are_several():
    _check_shared(config.experiment)
  if not processes.leads():
    directory = processes.new_folder()
  if config.experiment == 'report':
    return _redraw(config, directory)
  if directory is not None and workdir.check(directory, config.to_dict()):
    return _revisit(config, as_path(directory))
  runtime.prepare()
  seconds = {}
  with records.recorded_warnings() as messages:
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
      console.left_out(dataset.left_out)
      if allow_upgrade:
        records.accept_versions(path)
      mirrored = board.mirror(path) if config.get('tensorboard') else None
      with (
        _explaining_how_to_resume(path, command),
        mirrored or contextlib.nullcontext(),
      ):
        summary = records.fill(
          *(path, config, title, dataset, find, seconds, messages, command)
        )
      if processes.leads():
        console.results(summary, records.published(config))
  return path


def _check_shared(name):
  """Checks that several processes can share an experiment."""
  if name not in EXPERIMENTS or not EXPERIMENTS[name].is_shared:
    raise InputError(
      f'config.experiment is {name!r}, which one process does alone: start it '
      'once, without --coordinator, or with --num_processes=1'
    )


def _redraw(config, directory):
  """Draws figures and page of the finished run `config.run` again, from what it
  has kept."""
  if directory is not None:
    raise InputError(
      f'workdir is {directory}, but a report is drawn in the run itself: name '
      'this with --config.run=DIR, and leave workdir out'
    )
  path = as_path(config.run)
  if not config.run or not workdir.is_finished(path):
    raise InputError(
      f'config.run is {config.run!r}: it must be the directory of a finished '
      'run'
    )
  own = workdir.read_config(path)
  name = own.get('experiment')
  is_whole = not own.get('stages') or any(path.glob('checkpoints'))
  if name not in _REDRAWN or not is_whole:
    raise InputError(
      f'config.run is {config.run}, a {name} run, which keeps too little to be '
      f'drawn again: make it anew, or name one of {", ".join(_REDRAWN)} with '
      'its checkpoints'
    )
  runtime.prepare()
  with records.recorded_warnings(), workdir.claim(path, own.to_dict()):
    dataset, find = EXPERIMENTS[own.experiment].prepare(own)
    records.redraw(path, own, dataset, find)
  return path


# Experiments whose runs keep what their figures need.
_REDRAWN = ('cluster', 'predict', 'leaderboard', 'committee')


def _revisit(config, path):
  """Says that a run is finished, if it had the images that there are now."""
  runtime.prepare()
  dataset = None
  with records.recorded_warnings():
    with contextlib.suppress(InputError):  # they may be gone by now
      dataset, _ = EXPERIMENTS[config.experiment].prepare(config)
    if dataset is not None and (path / 'origin.json').exists():
      records.check_origin(path, config, dataset, is_finished=True)
  console.say('already finished')
  return path


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


@contextlib.contextmanager
def _explaining_how_to_resume(
  path: pathlib.Path, command: str | None
) -> Iterator[None]:
  """Says what a run that ends early has left, and where, to who has typed a
  command."""
  place = os.path.relpath(path)
  again = commands.as_typed(
    f'the same command with --workdir={place} resumes from there',
    shlex.split(command or ''),
  )
  try:
    yield
  except signals.Stopped:
    console.say(again)
    raise
  except (InputError, RunError):
    raise
  except Exception as error:
    if not processes.leads():  # its folder is not kept
      raise
    if getattr(error, 'errno', None) in _DISK_ERRORS:
      raise RunError(
        f'{place} cannot be written ({error.strerror}): make room, then {again}'
      ) from error
    log = workdir.log_error(path, error)
    raise RunError(
      f'unexpected {type(error).__name__} ({one_line(error)}): its traceback '
      f'is in {os.path.relpath(log)}; {again}'
    ) from error


def prepare_sweep(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of a sweep."""
  dataset = data.load(**config.data)
  config = pipeline.for_few(config, dataset)
  num_features, _ = pipeline.check_stages(config, dataset)
  options = config.sweep.to_dict()
  unit_length = options.pop('unit_length', False)
  selection.check_options(len(dataset.images), num_features, **options)
  return dataset, functools.partial(
    _sweep, config, dataset, options, unit_length
  )


def _sweep(config, dataset, options, unit_length, path, seconds):
  """Clusters into each number of clusters that no earlier process has tried,
  then scores all at once."""
  seeds, counts = [config.seed], tuple(options.pop('num_clusters'))
  represented = pipeline.represent(config, dataset, seeds, path, seconds)
  x = next(represented).points['train']
  if not processes.leads():
    return {}, []
  if unit_length:
    x = unit_rows(x)
  tried = _tried(path)
  left = [count for count in counts if count not in tried]
  key = jax.random.fold_in(jax.random.key(config.seed), phases.CLUSTERS)
  with (
    timed(seconds, 'sweep', quietly=True),
    console.progress('sweep', len(counts)) as show,
  ):
    fits = selection.sweep(key, x, num_clusters=left, **options)
    for record in fits if left else ():
      count, labels = record['num_clusters'], record.pop('labels')
      workdir.write_arrays(path / 'sweep', f'{count}.npz', labels=labels)
      workdir.log(path, phase='sweep', **record)
      tried[count] = record, labels
      show(len(tried), f'{count} clusters')
  with timed(seconds, 'silhouette'):
    rows, labels = zip(*(tried[count] for count in counts), strict=True)
    scores = selection.silhouette(x, np.stack(labels), counts)
    for record, score in zip(rows, scores.tolist(), strict=True):
      record['silhouette'] = score if np.isfinite(score) else None
  choices, told = selection.choose(rows), selection.conclusion(rows)
  chart = figures.sweep(path / 'figures' / 'sweep.png', rows, choices)
  section = page.Section(
    'Criteria',
    'Each criterion over the number of clusters, and its choice. In short: '
    f'{told}.',
    charts=[(chart, 'criteria over the number of clusters')],
  )
  found = {'sweep': rows, 'choices': choices, 'conclusion': told}
  return found, [section]


def _tried(path):
  """The record and the labels of each number of clusters tried before."""
  (path / 'sweep').mkdir(exist_ok=True)
  found = {}
  for record in workdir.read_log(path, phase='sweep'):
    count = record['num_clusters']
    with contextlib.suppress(InputError):  # it is tried again
      arrays = data.read_npz(path / 'sweep' / f'{count}.npz', '')
      del record['phase']
      found[count] = record, arrays['labels']
  return found


def prepare_benchmark(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of a benchmark."""
  dataset = data.load(**config.data)
  model.check_images(dataset.images, True)
  contests = benchmark.plan(dataset.images.shape, **config.benchmark.to_dict())
  return dataset, functools.partial(_benchmark, config, dataset, contests)


def _benchmark(config, dataset, contests, path, seconds):
  """Measures this code against its peers, beginning with the first row that no
  earlier process has measured; writes benchmark.json."""
  key, images = jax.random.key(config.seed), jnp.asarray(dataset.images)
  rows = workdir.read_log(path, phase='benchmark')
  workdir.rewind_log(path, 'row', len(rows), phase='benchmark')
  limits = _limits(path, config.benchmark.limit_size)
  options = config.benchmark.rounds, config.benchmark.patience, limits
  with (
    timed(seconds, 'benchmark', quietly=True),
    console.progress('benchmark', len(contests)) as show,
  ):
    for contest in contests[len(rows) :]:
      try:
        record = benchmark.measure(contest(key, images), *options)
      except benchmark.MismatchError as error:
        raise RunError(str(error)) from error
      place = {'phase': 'benchmark', 'row': len(rows) + 1}
      rows.append({**place, **record, 'peers': benchmark.versions()})
      workdir.log(path, **rows[-1])
      show(len(rows), record['name'])
  machine = {'device': runtime.device(), 'versions': runtime.versions()}
  peers = {k: v for row in rows for k, v in row['peers'].items()}
  found = {'limits': limits, 'rows': rows, 'peers': peers}
  workdir.write_json(path, 'benchmark.json', found | machine)
  chart = figures.benchmark(path / 'figures' / 'benchmark.png', rows)
  charts = [(chart, 'ratios of seconds')]
  if any(row['size'] for row in rows):
    chart = figures.scaling(path / 'figures' / 'scaling.png', rows)
    charts.append((chart, 'seconds over the number of points'))
  section = page.Section(
    'Speeds',
    'Times of the others for the same work, in multiples of ours.',
    charts=charts,
  )
  return found, [section]


def _limits(path, size):
  """The limits of the machine, as the run's first process measured them."""
  if found := workdir.read_log(path, phase='limits'):
    return found[-1]['limits']
  limits = benchmark.measure_limits(size)
  workdir.log(path, phase='limits', limits=limits)
  return limits


class Experiment(NamedTuple):
  """One way from a config to results."""

  needs: str  # what only configs of this experiment have
  # config -> images, and `(path, seconds) -> summary, sections of the page`;
  # loads the images, and checks all options before anything compiles.
  prepare: Callable
  title: Callable = lambda config: config.experiment
  is_shared: bool = False  # whether processes can share the work


EXPERIMENTS = {
  'cluster': Experiment(
    'clusterer', pipeline.prepare, pipeline.title, is_shared=True
  ),
  'predict': Experiment('run', predictions.prepare),
  'sweep': Experiment('sweep', prepare_sweep, is_shared=True),
  'benchmark': Experiment('benchmark', prepare_benchmark),
  'leaderboard': Experiment(
    'methods', several.prepare_leaderboard, is_shared=True
  ),
  'committee': Experiment('members', several.prepare_committee, is_shared=True),
  'compare': Experiment('runs', comparison.prepare),
}

"""Experiments: from a config to the files of a run.

An experiment is one line: data, stages of methods one after another, points, a
clusterer if the last method does not assign images itself, assignment, scores,
files. It resumes what an earlier process of the same run has saved. Beside this
pipeline there are predictions, sweeps and benchmarks; these two begin again.

Axes: N images, D features, K clusters.
"""

import contextlib
import csv
import errno
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
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
  runtime,
  selection,
  signals,
  workdir,
)
from jaxclust.algorithms.assignment import Assignment
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

# Images of each cluster in the gallery.
_TYPICAL = 12


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
        found, sections = find(path, seconds)
        summary = _circumstances(title, config, dataset) | found
        summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
        summary['warnings'] = messages
        published = config.get('reference', ConfigDict()).to_dict()
        if published.get('dataset') != config.data.name:  # of other images
          published = {}
        html = page.render(
          summary, config.to_dict(), published, sections, command
        )
        workdir.write(path, 'report.html', html.encode())
        workdir.write_json(path, 'summary.json', summary)
      console.results(summary, published)
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


def _circumstances(title, config, dataset):
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


def prepare_prediction(config: Any) -> tuple[Dataset, Callable]:
  """Loads a model, and images, which are made like those of its run."""
  own = model.load(config.run)
  size = own.image_shape[:2]
  if data.as_size(config.data.size) not in (None, size):
    raise InputError(
      f'config.data.size is {config.data.size}, but {config.run} takes images '
      f'of {size}: leave it out'
    )
  dataset = data.load(**config.data.to_dict() | {'size': size})
  dataset = data.with_channels(dataset, own.image_shape[2])
  page.check_embedding(config.embedding)
  for images in pipeline.splits_of(dataset).values():
    model.check_images(images, own.method is not None)
  return dataset, functools.partial(_predict, own, config, dataset)


def _predict(own, config, dataset, path, seconds):
  """Finds the clusters of all images; writes predictions.csv."""
  splits = pipeline.splits_of(dataset)
  if dataset.test_images is None:
    splits = {'images': dataset.images}
  first, num_clusters = next(iter(splits)), len(own.centers)
  with timed(seconds, 'predict'):
    points = {split: own.points(images) for split, images in splits.items()}
    found = {split: own.judge(x) for split, x in points.items()}
    write_predictions(path, found, dataset.files)
  with timed(seconds, 'figures'):
    labels = {split: assignment.labels for split, assignment in found.items()}
    scores = pipeline.label_scores(dataset, labels, num_clusters)
    findings = pipeline.find(dataset, own, points[first], found[first], scores)
    sections = page.draw(findings, path / 'figures', config.embedding)
    rows, titles = typical(found[first], num_clusters, _TYPICAL)
    gallery = path / 'figures' / 'gallery.png'
    figures.gallery(gallery, findings.images, rows, titles)
  if config.export:
    with timed(seconds, 'export'):
      model.export(own, path / 'model.jaxexport')
  console.say('predictions.csv has the cluster of each image')
  return {'run': os.path.abspath(config.run), **scores}, sections


def typical(
  found: Assignment, num_clusters: int, count: int
) -> tuple[list[np.ndarray], list[str]]:
  """The images that fit each of K clusters best, the best first.

  Returns:
    Rows of at most `count` images of each cluster, and a title with its size.
  """
  labels = np.asarray(found.labels)
  order = np.argsort(found.outlier_score, kind='stable')
  rows = [order[labels[order] == k] for k in range(num_clusters)]
  titles = [f'{k} ({len(own):,})' for k, own in enumerate(rows)]
  return [own[:count] for own in rows], titles


def write_predictions(
  path: pathlib.Path, found: dict[str, Assignment], files: Sequence[str]
) -> None:
  """Writes `predictions.csv` into a run directory: a row for each image of all
  splits. Without names of files, each is called `split/number`."""
  names = files or [
    f'{split}/{row}' for split, a in found.items() for row in range(len(a[0]))
  ]
  columns = map(np.concatenate, zip(*found.values(), strict=True))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('file', 'cluster', *Assignment._fields[1:]))
  writer.writerows(zip(names, *columns, strict=True))
  # Python decodes file names that are not UTF-8 to surrogates.
  content = text.getvalue().encode(errors='surrogateescape')
  workdir.write(path, 'predictions.csv', content)


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


class Experiment(NamedTuple):
  """One way from a config to results."""

  needs: str  # what only configs of this experiment have
  # config -> images, and `(path, seconds) -> summary, sections of the page`;
  # loads the images, and checks all options before anything compiles.
  prepare: Callable
  title: Callable = lambda config: config.experiment


EXPERIMENTS = {
  'cluster': Experiment('clusterer', pipeline.prepare, pipeline.title),
  'predict': Experiment('run', prepare_prediction),
  'sweep': Experiment('sweep', prepare_sweep),
  'benchmark': Experiment('benchmark', prepare_benchmark),
}

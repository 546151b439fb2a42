"""Experiments beside the pipeline: predictions, sweeps and benchmarks.

Axes: N images, D features, K clusters.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import (
  benchmark,
  data,
  model,
  phases,
  pipeline,
  runtime,
  selection,
  validation,
  workdir,
)
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.errors import InputError, RunError
from jaxclust.pipeline import timed
from jaxclust.report import console, figures, page

# Images of each cluster in the gallery.
_TYPICAL = 12


def prediction(config: Any) -> dict:
  """What a prediction does with the model of its run, which is loaded once.

  Raises:
    InputError: if there is no such model.
  """
  own = model.load(config.run)
  return {
    'load': functools.partial(_load_for_run, own),
    'check': functools.partial(_check_prediction, own),
    'run': functools.partial(_run_prediction, own),
  }


def _load_for_run(own, config):
  """Loads images, and makes them like those of the run that is to be used."""
  image_shape = own.image_shape
  options = config.data.to_dict()
  if data.as_size(options['size']) not in (None, image_shape[:2]):
    raise InputError(
      f'config.data.size is {options["size"]}, but {config.run} takes images '
      f'of {image_shape[:2]}: leave it out'
    )
  dataset = data.load(**options | {'size': image_shape[:2]})
  return data.with_channels(dataset, image_shape[2])


def _check_prediction(own, config, dataset):
  page.check_embedding(config.embedding)
  for images in (dataset.images, dataset.test_images):
    if images is not None:
      model.check_images(images, own.encoder is not None)


def _run_prediction(own, config, dataset, path, seconds):
  """Finds the clusters of all images; writes predictions.csv."""
  splits = {'images': dataset.images}
  if dataset.test_images is not None:
    splits = {'train': dataset.images, 'test': dataset.test_images}
  with timed(seconds, 'predict'):
    points = {
      split: model.to_points(images, own.encoder)
      for split, images in splits.items()
    }
    found = {split: own.judge(x) for split, x in points.items()}
    write_predictions(path, found, dataset.files)
  with timed(seconds, 'figures'):
    first, num_clusters = next(iter(splits)), len(own.centers)
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
  return {'run': os.path.abspath(config.run), **scores}, sections


def typical(
  found: Assignment, num_clusters: int, count: int
) -> tuple[list[np.ndarray], list[str]]:
  """The images that fit each of K clusters best, the best first.

  Args:
    found: of N images.
    num_clusters: K.
    count: maximum number of images of a cluster.

  Returns:
    Rows of the images of each cluster, and a title with its size.
  """
  labels = np.asarray(found.labels)
  order = np.argsort(found.outlier_score, kind='stable')
  rows = [order[labels[order] == k] for k in range(num_clusters)]
  titles = [f'{k} ({len(own):,})' for k, own in enumerate(rows)]
  return [own[:count] for own in rows], titles


def write_predictions(
  path: pathlib.Path, found: dict[str, Assignment], files: Sequence[str]
) -> None:
  """Writes `predictions.csv` into a run directory: a row for each image.

  Args:
    path: the run directory.
    found: in the images of each split.
    files: names of all images; if empty, each is called `split/number`.
  """
  names = files or [
    f'{split}/{row}' for split, a in found.items() for row in range(len(a[0]))
  ]
  columns = Assignment(*map(np.concatenate, zip(*found.values(), strict=True)))
  columns = columns._asdict()
  columns = {'file': names, 'cluster': columns.pop('labels'), **columns}
  workdir.write_table(path, 'predictions.csv', columns)


def check_sweep(config: Any, dataset: Dataset) -> None:
  """Checks the options of a sweep."""
  num_features = validation.check_stages(config, dataset)
  options = config.sweep.to_dict()
  selection.check_options(len(dataset.images), num_features, **options)


def run_sweep(
  config: Any, dataset: Dataset, path: pathlib.Path, seconds: dict
) -> tuple[dict, list]:
  """Clusters into each number of clusters, then scores all at once."""
  seeds = [config.seed]
  represented = pipeline.represent(config, dataset, seeds, path, seconds)
  x = next(represented).points['train']
  counts = tuple(config.sweep.num_clusters)
  workdir.rewind_log(path, 'num_clusters', 0, phase='sweep')
  records, labels = [], []
  key = jax.random.fold_in(jax.random.key(config.seed), phases.CLUSTERS)
  sweep = selection.sweep(key, x, **config.sweep.to_dict())
  with (
    timed(seconds, 'sweep', quietly=True),
    console.progress('sweep', len(counts)) as show,
  ):
    for record in sweep:
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


def check_benchmark(config: Any, dataset: Dataset) -> None:
  """Checks the options of a benchmark."""
  model.check_images(dataset.images, True)
  options = config.benchmark.to_dict()
  benchmark.check_options(dataset.images.shape, **options)


def run_benchmark(
  config: Any, dataset: Dataset, path: pathlib.Path, seconds: dict
) -> tuple[dict, list]:
  """Measures this code against its peers; writes benchmark.json."""
  key = jax.random.key(config.seed)
  images = jnp.asarray(dataset.images)
  options = config.benchmark.to_dict()
  workdir.rewind_log(path, 'row', 0, phase='benchmark')
  rows = []
  with (
    timed(seconds, 'benchmark', quietly=True),
    console.progress('benchmark', benchmark.num_rows(**options)) as show,
  ):
    records = benchmark.run(key, images, **options)
    limits = next(records)
    try:
      for record in records:
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

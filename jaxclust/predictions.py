"""Other images by the clusters of a finished run.

Axes: N images, K clusters.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclust import answers, data, findings, model, pipeline, storage, tables
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.errors import InputError
from jaxclust.paths import as_path
from jaxclust.report import console, figures, maps, page
from jaxclust.report.console import timed

# Images of each cluster in the gallery.
_TYPICAL = 12


def prepare(config: Any) -> tuple[Dataset, Callable]:
  """Loads a model, and images, which are made like those of its run."""
  own = storage.load(config.run)
  size = own.image_shape[:2]
  if data.as_size(config.data.size) not in (None, size):
    raise InputError(
      f'config.data.size is {config.data.size}, but {config.run} takes images '
      f'of {size}: leave it out'
    )
  dataset = data.load(**config.data.to_dict() | {'size': size})
  dataset = data.with_channels(dataset, own.image_shape[2])
  maps.check_embedding(config.embedding)
  names = ()
  if config.names:
    names = tables.read_names(config.names, len(own.centers))
  for images in pipeline.splits_of(dataset).values():
    own.check(images)
  return dataset, functools.partial(_predict, own, config, dataset, names)


def _predict(own, config, dataset, names, path, seconds):
  """Finds the clusters of all images; writes tables and pictures of them."""
  splits = pipeline.splits_of(dataset)
  if dataset.test_images is None:
    splits = {'images': dataset.images}
  first, num_clusters = next(iter(splits)), len(own.centers)
  with timed(seconds, 'predict'):
    points = {split: own.points(images) for split, images in splits.items()}
    found = {split: own.judge(x) for split, x in points.items()}
    places = maps.locate(points, config.embedding)
    tables.write(path, dataset, own, found, places, names)
  with timed(seconds, 'figures'):
    labels = {split: assignment.labels for split, assignment in found.items()}
    scores = answers.label_scores(dataset, labels, num_clusters)
    shown = findings.find(
      *(dataset, own, places, found, scores), cluster_names=names
    )
    sections = page.draw(shown, path / 'figures')
    rows, titles = typical(found[first], num_clusters, _TYPICAL)
    gallery = path / 'figures' / 'gallery.png'
    figures.gallery(gallery, shown.images, rows, titles)
  counts = np.bincount(found[first].labels, minlength=num_clusters)
  called = names or range(num_clusters)
  told = ', '.join(f'{n} {c:,}' for n, c in zip(called, counts, strict=True))
  console.say(f'images by cluster: {told}')
  if config.export:
    with timed(seconds, 'export'):
      model.export(own, path / 'model.jaxexport')
  return {'run': str(as_path(config.run)), **scores}, sections


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

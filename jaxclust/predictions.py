"""Other images by the clusters of a finished run.

Axes: N images, K clusters.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxclust import answers, data, findings, model, pipeline, storage, workdir
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.errors import InputError
from jaxclust.paths import as_path
from jaxclust.report import console, figures, page
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
  page.check_embedding(config.embedding)
  for images in pipeline.splits_of(dataset).values():
    own.check(images)
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
    scores = answers.label_scores(dataset, labels, num_clusters)
    shown = findings.find(dataset, own, points[first], found[first], scores)
    sections = page.draw(shown, path / 'figures', config.embedding)
    rows, titles = typical(found[first], num_clusters, _TYPICAL)
    gallery = path / 'figures' / 'gallery.png'
    figures.gallery(gallery, shown.images, rows, titles)
  if config.export:
    with timed(seconds, 'export'):
      model.export(own, path / 'model.jaxexport')
  console.say('predictions.csv has the cluster of each image')
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

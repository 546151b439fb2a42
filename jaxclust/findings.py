"""Findings of a run for its page: images, clusters and the views of images.

Axes: N images, H height, W width, C channels, D features, K clusters, V views.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import encoding, model, plans, tables
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset, augment
from jaxclust.model import Model
from jaxclust.report import page, pictures

# Number of images whose views are shown.
_SHOWN = 10


def find(
  dataset: Dataset,
  own: Model,
  places: dict[str, dict[str, np.ndarray]],
  judged: dict[str, Assignment],
  scores: dict,
  **course: Any,
) -> page.Findings:
  """Findings in the first split: its places from `maps.locate`, its assignment,
  and what is known of the course of training and restarts."""
  (first, found), images = next(iter(judged.items())), dataset.images
  if own.can_decode:
    centers = np.asarray(own.decode(own.centers))
  else:
    centers = _medoids(images, found, len(own.centers))
  if own.method is not None and own.can_decode:
    course['reconstruction_errors'] = np.asarray(
      own.apply(encoding.errors, images)
    )
    course['reconstruct'] = lambda some: own.decode(own.points(some))
  if own.method is None:
    images, centers = pictures.to_unit(images, centers)
  return page.Findings(
    images=images,
    places={name: own[first] for name, own in places.items()},
    labels=found.labels,
    confidence=found.confidence,
    outlier_score=found.outlier_score,
    outlier=own.percentile(found.outlier_score),
    files=tables.texts(dataset.files[: len(images)]),
    split=first,
    centers=centers,
    classes=dataset.labels,
    class_names=dataset.label_names,
    scores={part: s for part, s in scores.items() if part != 'fit'},
    **course,
  )


def _medoids(images, found, num_clusters):
  """The image nearest to the center of each cluster; black for an empty one."""
  medoids = np.zeros((num_clusters, *images.shape[1:]), images.dtype)
  for row in np.argsort(-found.distance, kind='stable'):
    medoids[found.labels[row]] = images[row]  # the nearest comes last
  return medoids


def views(config: Any, images: np.ndarray) -> Any:
  """Some images `[n, H, W, C]`, and views of them as the last stage sees them,
  `[V, n, H, W, C]`; none where a stage takes images as they are."""
  if not config.stages:
    return ()
  options, own = model.stage_options(config, config.stages[-1])
  drawn = plans.augmentation_of(options)
  if not any(drawn):
    return ()
  some = encoding.as_pixels(jnp.asarray(images[:: -(-len(images) // _SHOWN)]))
  keys = jax.random.split(jax.random.key(config.seed), len(some))
  views, _ = augment.augment(keys, some, drawn, own.get('num_views', 2))
  return np.asarray(jnp.concatenate([some[:, None], views], 1).swapaxes(0, 1))

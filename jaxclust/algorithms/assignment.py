"""What clusters say of points: labels, confidence, outliers.

Axes: N points, D features, K clusters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclust.algorithms import gmm, kmeans


class Assignment(NamedTuple):
  """What clusters find in each point, on the host."""

  labels: np.ndarray  # [N] int32
  second: np.ndarray  # [N] int32, the next best; the same if K is 1
  # The largest responsibility of a mixture, unless a model has calibrated it.
  # k-means has no probabilities: it is 1 - a / b for the distances a and b from
  # the nearest and the second nearest center, 1 at a center and 0 halfway
  # between two.
  confidence: np.ndarray  # [N] in [0, 1]
  # The surprise -log p(x) of a mixture, else the distance.
  outlier_score: np.ndarray  # [N] higher is stranger
  distance: np.ndarray  # [N] to the center or mean of the cluster
  # How far the cluster is ahead of the next best: the logarithm of the ratio of
  # their shares, or of the distances from their centers.
  margin: np.ndarray  # [N] at least 0


class Assigner(NamedTuple):
  """How points get their clusters; `clusters` are centers or a mixture."""

  predict: Callable  # (clusters, x [N, D]) -> labels [N]
  assign: Callable  # (clusters, x [N, D]) -> Assignment
  centers: Callable  # clusters -> [K, D]
  probabilities: Callable | None = None  # (clusters, x [N, D]) -> [N, K]
  sample: Callable | None = None  # (key, clusters, number) -> [number, D]


def _assign_to_centers(metric: str, centers: Any, x: jax.Array) -> Assignment:
  labels = np.asarray(kmeans.predict(centers, x, metric=metric))
  distances = np.asarray(kmeans.transform(centers, x, metric=metric))
  nearest, second = _of_each(distances, labels), _next_best(-distances, labels)
  if len(centers) == 1:
    one = np.ones_like(nearest)
    return Assignment(labels, second, one, nearest, nearest, 0 * one)
  farther = _of_each(distances, second)
  ratio = np.ones_like(nearest)  # between two centers that are equal
  np.divide(nearest, farther, out=ratio, where=farther > 0)
  confidence = np.maximum(1 - ratio, 0)  # a tie may be decided by rounding
  margin = _log_ratio(farther, nearest)
  return Assignment(labels, second, confidence, nearest, nearest, margin)


def by_shares(probabilities: Callable, centers: Callable) -> Assigner:
  """The assigner of probabilities and centers, as those of an `Assigner`.

  A point is in the cluster of its largest share, which is the confidence; an
  outlier is far from its center.
  """

  def predict(clusters, x):
    return probabilities(clusters, x).argmax(axis=1).astype(np.int32)

  def assign(clusters, x):
    shares = np.asarray(probabilities(clusters, x))
    labels = shares.argmax(axis=1).astype(np.int32)
    distance = _of_each(kmeans.transform(centers(clusters), x), labels)
    second = _next_best(shares, labels)
    share = shares.max(axis=1)
    margin = _log_ratio(share, _of_each(shares, second))
    return Assignment(labels, second, share, distance, distance, margin)

  return Assigner(predict, assign, centers, probabilities)


def _log_ratio(larger, smaller):
  """Logarithms of ratios, at least 0, as large as float32 tells."""
  least = np.finfo(np.float32).tiny
  ratio = np.log(np.maximum(larger, least)) - np.log(np.maximum(smaller, least))
  return np.maximum(ratio, 0)


def _of_each(values, labels):
  """The value `[N]` of the cluster of each point, from `[N, K]`."""
  return np.take_along_axis(np.asarray(values), labels[:, None], axis=1)[:, 0]


def _next_best(values, labels):
  """The cluster `[N]` of the largest of values `[N, K]` beside that of each
  point; the same where there is one cluster."""
  others = np.array(values)
  np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
  return others.argmax(axis=1).astype(np.int32)


def _assign_to_mixture(params: gmm.GMMParams, x: jax.Array) -> Assignment:
  labels = np.asarray(gmm.predict(params, x))
  shares = np.asarray(gmm.responsibilities(params, x))
  distance = _of_each(kmeans.transform(params.means, x), labels)
  surprise = np.asarray(gmm.outlier_score(params, x))
  logs = np.asarray(gmm.log_responsibilities(params, x))
  second = _next_best(logs, labels)
  margin = np.maximum(_of_each(logs, labels) - _of_each(logs, second), 0)
  share = shares.max(axis=1)
  return Assignment(labels, second, share, surprise, distance, margin)


def nearest_center(metric: str) -> Assigner:
  """The assigner of k-means with a metric."""
  return Assigner(
    predict=functools.partial(kmeans.predict, metric=metric),
    assign=functools.partial(_assign_to_centers, metric),
    centers=lambda centers: centers,
  )


MIXTURE = Assigner(
  predict=gmm.predict,
  assign=_assign_to_mixture,
  centers=lambda params: params.means,
  probabilities=gmm.responsibilities,
  sample=gmm.sample,
)


class Clusterer(NamedTuple):
  """What an experiment has to know of an algorithm."""

  fit: Callable  # (key, x, **options) -> result
  start: Callable  # (key, x, **options) -> Solution
  run: Callable  # (state, x, num_steps, **options) -> Solution, objectives
  best: Callable  # Solution -> result
  warn: Callable  # result -> None
  check: Callable  # (N, D, **options of fit) raises an InputError
  groups: str  # the option that holds K
  score: str  # the field of a result that tells how well it fits
  in_units: Callable  # (Solution, objectives) -> scores in the data's units
  operations: Callable  # (N, D, K) -> of one step
  clusters: Callable  # result -> what the assigner takes
  like: Callable  # (D, options) -> shapes of the clusters
  assigner: Callable  # options -> Assigner
  criteria: Callable  # (clusters, x) -> scores beside that of the fit


def _shape(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def _like_gmm(num_features, options):
  shape = options['num_components'], num_features
  family = gmm.FAMILIES[options['covariance']]
  scale_tril = _shape(*family.shape(*shape))
  return gmm.GMMParams(_shape(shape[0]), _shape(*shape), scale_tril)


ALGORITHMS = {
  'kmeans': Clusterer(
    fit=kmeans.fit,
    start=kmeans.start,
    run=kmeans.run,
    best=kmeans.best,
    warn=kmeans.warn,
    check=kmeans.check,
    groups='num_clusters',
    score='inertia',
    in_units=kmeans.in_units,
    operations=lambda n, d, k: 0.4 * n * d * k,  # bounds spare the rest
    clusters=lambda result: result.centers,
    like=lambda d, options: _shape(options['num_clusters'], d),
    assigner=lambda options: nearest_center(options.get('metric', 'euclidean')),
    criteria=lambda centers, x: {},
  ),
  'gmm': Clusterer(
    fit=gmm.fit,
    start=gmm.start,
    run=gmm.run,
    best=gmm.best,
    warn=gmm.warn,
    check=gmm.check,
    groups='num_components',
    score='log_likelihood',
    in_units=lambda state, scores: gmm.in_units(state, -scores),
    operations=lambda n, d, k: 4 * n * d * d * k,
    clusters=lambda result: result.params,
    like=_like_gmm,
    assigner=lambda options: MIXTURE,
    criteria=lambda params, x: {'bic': float(gmm.bic(params, x))},
  ),
}

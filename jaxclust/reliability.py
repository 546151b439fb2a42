"""How sure a cluster is: the share of images like one that keep theirs.

Other clusterings of the same points say which images keep their cluster: the
heads of a network, the members of a committee, else fits to images that are
drawn anew (bootstrap). The confidence of an image is the share that does so
among images with a margin like its own.

Axes: N images, D features, K clusters, A other clusterings, Q knots, B bins.

Reference:
  Zadrozny and Elkan (2002), Transforming classifier scores into accurate
    multiclass probability estimates, https://doi.org/10.1145/775047.775151
"""

import warnings
from typing import NamedTuple

import jax
import numpy as np

from jaxclust.algorithms import consensus
from jaxclust.algorithms.assignment import ALGORITHMS, Assignment
from jaxclust.model import Model

# Number of fits to images that are drawn anew, maximum images of each, and
# maximum restarts.
_FITS, _DRAWN, _RESTARTS = 4, 10_000, 3

# Number of bins of a chart.
_BINS = 10


class Reliability(NamedTuple):
  """Confidence against what is kept, of images that did not shape it."""

  confidence: np.ndarray  # [B] mean of each bin that has images, rising
  kept: np.ndarray  # [B] share of images that keep their cluster
  sizes: np.ndarray  # [B] images

  @property
  def error(self) -> float:
    """The mean distance of confidence from what is kept."""
    gap = np.abs(self.confidence - self.kept)
    return float(np.average(gap, weights=self.sizes))


def told(found: Reliability | None) -> dict:
  """What a summary tells of it."""
  if found is None:
    return {}
  kept = float(np.average(found.kept, weights=found.sizes))
  return {'kept': kept, 'confidence_error': found.error}


def calibrate(
  own: Model, x: jax.Array, judged: dict[str, Assignment]
) -> tuple[Model, dict[str, Assignment], Reliability | None]:
  """Calibrates confidence on the points `[N, D]` of the first split.

  Args:
    own: a model.
    x: the points.
    judged: its assignments of the points of each split.

  Returns:
    The model and the assignments with the new confidence, and how well that
    holds; as they were, and None, where no other clustering can be made.
  """
  found = next(iter(judged.values()))
  others = _others(own, x)
  if not len(others) or len(x) < 2:
    return own, judged, None
  kept = kept_shares(found.labels, others, len(own.centers))
  shaped = fit_curve(found.margin[::2], kept[::2])
  tested = np.interp(found.margin[1::2], *shaped)
  own = own._replace(curve=fit_curve(found.margin, kept))
  judged = {split: own.calibrated(each) for split, each in judged.items()}
  return own, judged, in_bins(tested, kept[1::2])


def kept_shares(
  labels: np.ndarray, others: np.ndarray, num_clusters: int
) -> np.ndarray:
  """The share `[N]` of other clusterings `[A, N]` that leave each image in its
  cluster `[N]`, matched one to one.

  >>> labels = np.array([0, 0, 1, 1])
  >>> kept_shares(labels, np.array([[1, 1, 0, 0], [0, 1, 1, 1]]), 2).tolist()
  [1.0, 0.5, 1.0, 1.0]
  """
  every = np.stack([labels, *others])
  names = consensus.align(every, 0, num_clusters)
  renamed = [own[row] for own, row in zip(names[1:], others, strict=True)]
  return (np.stack(renamed) == labels[None]).mean(axis=0)


def fit_curve(margin: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """Margins and shares `[2, Q]` float32, both rising: the isotonic regression
  of the shares that are kept `[N]` on margins `[N]`."""
  from sklearn.isotonic import IsotonicRegression

  fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip')
  fitted.fit(margin.astype(np.float32), kept)
  curve = fitted.X_thresholds_, fitted.y_thresholds_
  return np.stack(curve).astype(np.float32)


def in_bins(confidence: np.ndarray, kept: np.ndarray) -> Reliability:
  """Means over images `[N]` whose confidence is in the same tenth."""
  place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
  count = np.bincount(place, minlength=_BINS)
  sums = [np.bincount(place, v, _BINS) for v in (confidence, kept)]
  some = count > 0
  means = [total[some] / count[some] for total in sums]
  return Reliability(*means, count[some])


def _others(own, x):
  """Labels `[A, N]` of points by other clusterings."""
  if not own.recipe['clusterer'] and own.method.opinions is not None:
    found = np.asarray(own.method.opinions(own.params, x))
    if len(found):
      return found
  clusterer = ALGORITHMS[own.recipe['clusterer'] or 'kmeans']
  count = len(own.centers)
  options = own.recipe['clusterer_options'] or {clusterer.groups: count}
  restarts = min(_RESTARTS, options.get('num_restarts', _RESTARTS))
  options = options | {'num_restarts': restarts}
  assigner, found = clusterer.assigner(options), []
  rng, size = np.random.default_rng(0), min(len(x), _DRAWN)
  for number in range(_FITS):
    drawn = rng.integers(len(x), size=size)
    if len(np.unique(drawn)) < count:
      continue
    some, weight = x[drawn], None
    if size == len(x):  # of one shape, which is compiled already
      some, weight = x, np.bincount(drawn, minlength=size)
    key = jax.random.key(number)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # the run's own fit has warned
      result = clusterer.fit(key, some, sample_weight=weight, **options)
    labels = assigner.predict(clusterer.clusters(result), x)
    found.append(np.asarray(labels))
  return np.array(found)

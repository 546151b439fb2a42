"""k-means as an estimator.

Axes: N rows, D features, K clusters, R starts.
"""

import dataclasses
from typing import Any

import numpy as np
from sklearn.base import (
  BaseEstimator,
  ClassNamePrefixFeaturesOutMixin,
  ClusterMixin,
  TransformerMixin,
)

from jaxclust.algorithms import kmeans
from jaxclust.estimators.base import ReadMixin, parameters, words_of_sklearn


@parameters
class KMeans(
  ReadMixin,
  ClassNamePrefixFeaturesOutMixin,
  TransformerMixin,
  ClusterMixin,
  BaseEstimator,
):
  """k-means, see `kmeans.fit`; clusters are numbered by falling size.

  >>> found = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0]])
  >>> found.predict([[8.0], [0.0]]).tolist()
  [1, 0]

  Args:
    n_clusters: K.
    init: 'k-means++', 'k-means||', 'random', or centers `[K, D]` or
      `[R, K, D]`.
    n_init: R starts; given centers bring their own. 'auto' is 10 for 'random',
      and 1 for others.
    max_iter: most steps of a start.
    tol: bound on the squared shift of all centers, relative to the mean
      variance of the features, as scikit-learn's.
    metric: 'euclidean' or 'cosine'.
    random_state: see the package.

  Attributes are scikit-learn's: `cluster_centers_` `[K, D]`, `labels_` `[N]`,
  `inertia_` and `n_iter_`.
  """

  n_clusters: int = 8
  _: dataclasses.KW_ONLY
  init: Any = 'k-means++'
  n_init: int | str = 10
  max_iter: int = 300
  tol: float = 1e-4
  metric: str = 'euclidean'
  random_state: Any = None

  def fit(self, X, y=None, sample_weight=None):
    """Clusters rows `[N, D]` of weights `[N]`."""
    x = self._read_centered(X, about_mean=self.metric != 'cosine')
    init, num_restarts = self.init, self.n_init
    if num_restarts == 'auto':
      num_restarts = 10 if str(init) == 'random' else 1
    if not isinstance(init, str):
      init = self._start_less_origin('init', init)
    with words_of_sklearn():
      result = kmeans.fit(
        self._key(),
        x,
        num_clusters=self.n_clusters,
        num_restarts=num_restarts,
        init=init,
        metric=self.metric,
        max_steps=self.max_iter,
        tol=self.tol,
        sample_weight=sample_weight,
      )
    self.cluster_centers_ = self._plus_origin(result.centers)
    self.inertia_ = float(result.inertia)
    self.n_iter_ = int(result.num_steps)
    labels = kmeans.predict(result.centers, x, metric=self.metric)
    self.labels_ = np.asarray(labels)
    return self

  def predict(self, X):
    """Labels `[N]` of rows `[N, D]`."""
    return np.asarray(self._apply(kmeans.predict, X))

  def transform(self, X):
    """Distances `[N, K]` of rows `[N, D]` from the centers."""
    return np.asarray(self._apply(kmeans.transform, X), self._dtype)

  def score(self, X, y=None, sample_weight=None):
    """The negative inertia of rows `[N, D]`."""
    return float(self._apply(kmeans.score, X, sample_weight))

  def _apply(self, fn, X, *args):
    x = self._read_centered(X, reset=False)
    centers = self._less_origin(self.cluster_centers_)
    return fn(centers, x, *args, metric=self.metric)

  @property
  def _n_features_out(self):
    return len(self.cluster_centers_)

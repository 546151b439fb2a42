"""k-means as an estimator.

Axes: N rows, D features, K clusters, R starts.
"""

import dataclasses
from typing import Any, Self

import numpy as np
from sklearn.base import (
  BaseEstimator,
  ClassNamePrefixFeaturesOutMixin,
  ClusterMixin,
  TransformerMixin,
)
from sklearn.utils import check_random_state

from jaxclust import checks
from jaxclust.algorithms import kmeans
from jaxclust.estimators.base import (
  ReadMixin,
  parameters,
  warn_of_argument,
  words_of_sklearn,
)


class KMeansMixin(
  ReadMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin
):
  """Starts and predictions of estimators that find centers."""

  _reads_sparse = True
  _preserves = ('float64', 'float32')
  # Starts for n_init='auto' where a single one is left to chance.
  _num_drawn = None

  def _first_rows(self, X, sample_weight):
    """Rows of a fit; those whose directions count stay where they are."""
    return self._read_centered(
      X, sample_weight, about_mean=self.metric != 'cosine'
    )

  def _starts(self, x):
    """Starts of k-means, about the origin, and their number."""
    init, num_restarts = self.init, self.n_init
    if num_restarts == 'auto':
      drawn = callable(init) or str(init) == 'random'
      num_restarts = self._num_drawn if drawn else 1
    if isinstance(init, str):
      return init, num_restarts
    if callable(init):
      init = self._call(self._plus_origin(x), num_restarts)
    elif checks.as_real('init', init).ndim == 2 and num_restarts != 1:
      warn_of_argument(
        'Explicit initial center position passed: performing only one init in '
        f'place of n_init={num_restarts}; set it to 1'
      )
    return self._start_less_origin('init', init, self.n_clusters), num_restarts

  def _call(self, X, num_restarts):
    """Centers `[R, K, D]` of the caller's function."""
    checks.check_count('n_init', num_restarts)
    state = check_random_state(self.random_state)
    starts = [
      self.init(X, self.n_clusters, random_state=state)
      for _ in range(num_restarts)
    ]
    return np.stack([checks.as_real('init', start) for start in starts])

  def predict(self, X: Any) -> np.ndarray:
    """Labels `[N]` of rows `[N, D]`."""
    return np.asarray(self._apply(kmeans.predict, X))

  def transform(self, X: Any) -> np.ndarray:
    """Distances `[N, K]` of rows `[N, D]` from the centers."""
    return np.asarray(self._apply(kmeans.transform, X), self._dtype)

  def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
    """The negative inertia of rows `[N, D]`."""
    return float(self._apply(kmeans.score, X, sample_weight))

  def _apply(self, fn, X, *args):
    x = self._read_centered(X, reset=False)
    centers = self._less_origin(self.cluster_centers_)
    return fn(centers, x, *args, metric=self.metric)

  @property
  def _n_features_out(self):
    return len(self.cluster_centers_)


@parameters
class KMeans(KMeansMixin, BaseEstimator):
  """k-means, see `kmeans.fit`.

  Clusters are numbered by falling size, or in the order of given centers.

  Examples:
    >>> found = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0]])
    >>> found.predict([[8.0], [0.0]]).tolist()
    [1, 0]

  Args:
    n_clusters: K.
    init: 'k-means++', 'k-means||', 'random', centers `[K, D]` or `[R, K, D]`,
      or a function `(X, n_clusters, random_state)` that returns some.
    n_init: R starts; 'auto' is 10 for 'random' and functions, else 1. Given
      centers bring their own.
    max_iter: most steps of a start.
    tol: bound on the squared shift of all centers, relative to the mean
      variance of the features, as scikit-learn's.
    metric: 'euclidean' or 'cosine'.
    random_state: see the package.
    algorithm: 'lloyd' or 'elkan', which are the same here: exact steps, with
      bounds where these save work.
    verbose: whether to print inertias and how a fit has ended.
    copy_x: has no effect, as X is never changed.

  Sparse rows are read as dense ones.

  Attributes are scikit-learn's: `cluster_centers_` `[K, D]`, `labels_` `[N]`,
  `inertia_` and `n_iter_`.
  """

  n_clusters: int = 8
  _: dataclasses.KW_ONLY
  init: Any = 'k-means++'
  n_init: int | str = 'auto'
  max_iter: int = 300
  tol: float = 1e-4
  metric: str = 'euclidean'
  random_state: Any = None
  algorithm: str = 'lloyd'
  verbose: int = 0
  copy_x: bool = True

  _num_drawn = 10

  def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
    """Clusters rows `[N, D]` of weights `[N]`."""
    checks.check_choice('algorithm', self.algorithm, ('lloyd', 'elkan'))
    x = self._first_rows(X, sample_weight)
    init, num_restarts = self._starts(x)
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
    if self.verbose:
      self._print(result)
    return self

  def _print(self, result):
    """Prints a fit in scikit-learn's words."""
    print('Initialization complete')
    for step, inertia in enumerate(result.history[: self.n_iter_ + 1]):
      print(f'Iteration {step}, inertia {inertia}.')
    if result.converged:
      strict = 'strict convergence.'
      near = f'center shift is within tolerance {self.tol:g}.'
      print(f'Converged at iteration {self.n_iter_}: ', end='')
      print(near if self.tol else strict)

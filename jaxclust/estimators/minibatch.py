"""k-means on mini-batches as an estimator.

Axes: N rows, D features, K clusters, B rows of a mini-batch.
"""

import dataclasses
import math
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator

from jaxclust import checks
from jaxclust.algorithms import kmeans
from jaxclust.estimators.base import (
  parameters,
  warn_of_argument,
  words_of_sklearn,
)
from jaxclust.estimators.kmeans import KMeansMixin


@parameters
class MiniBatchKMeans(KMeansMixin, BaseEstimator):
  """k-means on small random batches, see `kmeans.fit_minibatch`, or on batches
  of the caller's.

  `fit` numbers clusters as `KMeans` does; `partial_fit` keeps their order.

  Examples:
    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> found = MiniBatchKMeans(2, random_state=0).partial_fit(x)
    >>> np.sort(found.partial_fit(x + 1).cluster_centers_[:, 0]).round(3)
    array([ 1., 11.])

  Args:
    n_clusters: K.
    init: as for `KMeans`.
    max_iter: most passes over the rows, in batches drawn with replacement.
    batch_size: B.
    verbose: whether to print how a fit has ended.
    compute_labels: whether to set `labels_`, and `inertia_` for batches.
    random_state: see the package.
    tol: bound on the squared shift of all centers by a batch, as for `KMeans`;
      0 to go on.
    max_no_improvement: batches in a row whose smoothed inertia is no less than
      before that end a fit; None to go on.
    init_size: rows that starts are drawn from; `max(3 B, 10 K)` if None.
    n_init: starts, each of which `fit` runs, and of which `partial_fit` takes
      the best for its first rows; 'auto' is 3 for 'random' and functions, else
      1.
    reassignment_ratio: has no effect: a cluster without points moves to the
      point of a batch that is farthest from all centers.
    metric: 'euclidean' or 'cosine'.

  Sparse rows are read as dense ones.

  Attributes are scikit-learn's: `cluster_centers_` `[K, D]`, `labels_` `[N]`
  and `inertia_` of the rows last fitted, `n_iter_` passes begun and `n_steps_`
  batches.
  """

  n_clusters: int = 8
  _: dataclasses.KW_ONLY
  init: Any = 'k-means++'
  max_iter: int = 100
  batch_size: int = 1024
  verbose: int = 0
  compute_labels: bool = True
  random_state: Any = None
  tol: float = 0.0
  max_no_improvement: int | None = 10
  init_size: int | None = None
  n_init: int | str = 'auto'
  reassignment_ratio: float = 0.01
  metric: str = 'euclidean'

  _num_drawn = 3

  def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
    """Clusters rows `[N, D]` of weights `[N]`."""
    x = self._first_rows(X, sample_weight)
    init, num_restarts = self._starts(x)
    checks.check_count('max_iter', self.max_iter)
    batch_size = min(checks.check_count('batch_size', self.batch_size), len(x))
    with words_of_sklearn(patience='max_no_improvement'):
      result = kmeans.fit_minibatch(
        self._key(),
        x,
        num_clusters=self.n_clusters,
        batch_size=batch_size,
        num_restarts=num_restarts,
        init=init,
        metric=self.metric,
        num_batches=max(1, self.max_iter * len(x) // batch_size),
        tol=self.tol,
        patience=self.max_no_improvement,
        sample_size=self._sample_size(len(x)),
        sample_weight=sample_weight,
      )
    self._state = kmeans.resume(result, self.metric)
    self.n_steps_ = int(result.num_steps)
    self.n_iter_ = math.ceil(self.n_steps_ * batch_size / len(x))
    self.inertia_ = float(result.inertia)
    if self.verbose and result.converged:
      print(f'Converged ({self._ends()}) at step {self.n_steps_}')
    return self._keep(result, x)

  def partial_fit(
    self, X: Any, y: Any = None, sample_weight: Any = None
  ) -> Self:
    """Takes further rows `[N, D]` of weights `[N]` into account, as one batch.

    The first ones, unless there was a fit, are those that starts are from.
    """
    if hasattr(self, 'cluster_centers_'):
      x = self._read_centered(X, reset=False)
      state = kmeans.update(self._state, x, sample_weight)
    else:
      x = self._first_rows(X, sample_weight)
      init, num_restarts = self._starts(x)
      with words_of_sklearn():
        state = kmeans.start(
          self._key(),
          x,
          num_clusters=self.n_clusters,
          num_restarts=num_restarts,
          init=init,
          metric=self.metric,
          sample_weight=sample_weight,
        )
      state = kmeans.update(state, x, sample_weight, decay=0.0)
      state = kmeans.keep_best(state)
    result = kmeans.best(state, in_order=True)
    if self.compute_labels:
      score = kmeans.score(result.centers, x, sample_weight, metric=self.metric)
      self.inertia_ = -float(score)
    self._state = state
    self.n_steps_ = getattr(self, 'n_steps_', 0) + 1
    return self._keep(result, x)

  def _ends(self):
    """The reasons for which a fit may have ended, in scikit-learn's words."""
    few = ['small centers change'] if self.tol else []
    if self.max_no_improvement is not None:
      few.append('lack of improvement in inertia')
    return ' or '.join(few)

  def _sample_size(self, num_rows):
    """Rows that starts are drawn from."""
    size = self.init_size
    if size is None:
      return None
    if checks.check_count('init_size', size) < self.n_clusters:
      warn_of_argument(
        f'init_size={size} should be larger than n_clusters='
        f'{self.n_clusters}: it is set to {3 * self.n_clusters}'
      )
      size = 3 * self.n_clusters
    return min(size, num_rows)

  def _keep(self, result, x):
    """Sets the attributes that fits and batches have in common."""
    self._state = jax.tree.map(np.asarray, self._state)
    self.cluster_centers_ = self._plus_origin(result.centers)
    if self.compute_labels:
      labels = kmeans.predict(result.centers, x, metric=self.metric)
      self.labels_ = np.asarray(labels)
    if self.verbose:
      print(f'k-means: {self.n_steps_} mini-batches')
    return self

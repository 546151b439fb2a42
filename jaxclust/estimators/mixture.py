"""Gaussian mixtures as an estimator.

Axes: N rows, D features, K components, R starts.
"""

import dataclasses
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted

from jaxclust import checks
from jaxclust.algorithms import gmm
from jaxclust.algorithms.em import GMMParams
from jaxclust.errors import InputError
from jaxclust.estimators.base import (
  ReadMixin,
  parameters,
  weighted_mean,
  words_of_sklearn,
)

# scikit-learn's name of a start -> that of `gmm.fit`.
_STARTS = {
  'kmeans': 'k-means',
  'k-means++': 'k-means++',
  'random_from_data': 'random',
}

# Family -> an array of its covariances in scikit-learn's shape.
SHAPES = {
  'full': lambda scale: scale,
  'tied': lambda scale: scale[0],
  'diag': lambda scale: scale,
  'spherical': lambda scale: scale[:, 0],
}


@parameters
class GaussianMixture(ReadMixin, DensityMixin, BaseEstimator):
  """A mixture of Gaussians by EM, see `gmm.fit`.

  The heaviest component comes first where starts are rows or clusters of the
  data. Those of a start that is given, resumed or random keep their order.

  Args:
    n_components: K.
    covariance_type: 'full', 'tied', 'diag' or 'spherical'.
    tol: a start has converged when a step gains at most this much `score`.
    reg: ridge on the covariances in units of the mean variance of the features,
      whereas scikit-learn's reg_covar is in units of the data.
    max_iter: most steps of a start.
    n_init: R starts.
    init_params: 'kmeans', 'k-means++', 'random_from_data' or 'random' (means of
      the rows with random weights).
    means_init: means `[K, D]` or `[R, K, D]` to start from in place of that,
      with equal weights and the covariance of the data, or None.
    random_state: see the package.
    reg_covar: the ridge in units of the data, in place of `reg`, or None.
    weights_init: weights `[K]` of the start, which is then one, or None.
    precisions_init: its precisions, in the shape of `precisions_`, or None.
    warm_start: whether a fit goes on from the one before.
    verbose: whether to print how a fit has ended.
    verbose_interval: has no effect.

  Attributes are scikit-learn's: `weights_` `[K]`, `means_` `[K, D]`, and
  `covariances_`, `precisions_` and `precisions_cholesky_` `[K, D, D]`, tied
  `[D, D]`, diag `[K, D]`, spherical `[K]`; `converged_`, `n_iter_`,
  `lower_bound_`, and `lower_bounds_` after each step, at most the first 127, of
  the best start. `params_` is all of it for the functions of `gmm`.
  """

  n_components: int = 1
  _: dataclasses.KW_ONLY
  covariance_type: str = 'full'
  tol: float = 1e-3
  reg: float = 1e-6
  max_iter: int = 100
  n_init: int = 1
  init_params: str = 'kmeans'
  means_init: Any = None
  random_state: Any = None
  reg_covar: float | None = None
  weights_init: Any = None
  precisions_init: Any = None
  warm_start: bool = False
  verbose: int = 0
  verbose_interval: int = 10

  def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
    """Fits rows `[N, D]` of weights `[N]`."""
    x = self._read_centered(X, sample_weight)
    with words_of_sklearn(init='means_init'):
      options = {
        'num_components': self.n_components,
        'covariance': self.covariance_type,
        'num_restarts': self.n_init,
        'reg': self._reg(x, sample_weight),
        'sample_weight': sample_weight,
      }
      key = self._key()
      options['init'] = self._start(key, x, options)
      result = gmm.fit(key, x, max_steps=self.max_iter, tol=self.tol, **options)
    params = GMMParams(*(np.asarray(a, self._dtype) for a in result.params))
    params = params._replace(means=self._plus_origin(params.means))
    self.params_ = params
    self.weights_, self.means_ = np.exp(params.log_weights), params.means
    root = _inverse_transpose(params.scale_tril)
    shape = SHAPES[self.covariance_type]
    self.covariances_ = shape(_square(params.scale_tril))
    self.precisions_ = shape(_square(root))
    self.precisions_cholesky_ = shape(root)
    self.converged_ = bool(result.converged)
    self.n_iter_ = int(result.num_steps)
    self.lower_bound_ = float(result.log_likelihood)
    self.lower_bounds_ = result.history[1 : self.n_iter_ + 1].tolist()
    if self.verbose:
      print(f'EM: {self.n_iter_} steps, log-likelihood {self.lower_bound_:.6g}')
    return self

  def _reg(self, x, sample_weight):
    """The ridge in units of the mean variance of the features."""
    if self.reg_covar is None:
      return self.reg
    checks.check_number('reg_covar', self.reg_covar)
    mean = weighted_mean(x, sample_weight)
    variance = weighted_mean(np.square(x - mean), sample_weight).mean()
    return self.reg_covar / variance if variance > 0 else self.reg

  def _start(self, key, x, options):
    """What EM starts from, about the origin."""
    if self.warm_start and hasattr(self, 'params_'):
      shape = self.n_components, x.shape[1]
      if self.params_.means.shape != shape:
        raise InputError(
          f'warm_start goes on from means of shape {self.params_.means.shape}, '
          f'and {shape} are needed: set it to False'
        )
      return self._params_less_origin()
    start = self._means(key, x, options['sample_weight'])
    if self.weights_init is None and self.precisions_init is None:
      return start
    if not isinstance(start, str) and start.ndim > 2:
      if len(start) > 1 and self.means_init is not None:
        raise InputError(
          f'means_init has shape {start.shape}: beside weights_init or '
          'precisions_init it must be of one start, [K, D]'
        )
      start = start[0]
    # A start of which the caller knows some better.
    state = gmm.start(key, x, init=start, **options)
    params = GMMParams(*map(np.asarray, gmm.best(state).params))
    if not isinstance(start, str):
      params = params._replace(means=start)
    if self.weights_init is not None:
      weights = self._given('weights_init', params.log_weights.shape)
      if (weights <= 0).any() or not np.isclose(weights.sum(), 1):
        raise InputError(
          f'weights_init sum to {weights.sum():.6g}, the least is '
          f'{weights.min():.6g}: they must be above 0 and sum to 1'
        )
      params = params._replace(log_weights=np.log(weights))
    if self.precisions_init is not None:
      shape = SHAPES[self.covariance_type](params.scale_tril).shape
      precisions = self._given('precisions_init', shape)
      params = params._replace(
        scale_tril=_factors(self.covariance_type, precisions)
      )
    return params

  def _means(self, key, x, sample_weight):
    """Means to start from, or the name of a start."""
    if self.means_init is not None:
      return self._start_less_origin(
        'means_init', self.means_init, self.n_components
      )
    if self.init_params == 'random':
      rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
      starts = []
      for _ in range(checks.check_count('n_init', self.n_init)):
        shares = rng.uniform(size=(len(x), self.n_components))
        shares /= shares.sum(axis=1, keepdims=True)
        if sample_weight is not None:
          shares *= checks.check_weights(sample_weight, len(x), float)[:, None]
        starts.append(shares.T @ x / shares.sum(axis=0)[:, None])
      return np.stack(starts)
    start = _STARTS.get(str(self.init_params))
    if start is None:
      raise InputError(
        f'init_params is {self.init_params!r}: it must be one of '
        f'{", ".join((*_STARTS, "random"))}; means go to means_init'
      )
    return start

  def _given(self, name, shape):
    """An array of the caller's in a shape that it must have."""
    array = np.asarray(checks.as_real(name, getattr(self, name)), np.float64)
    if array.shape != shape:
      raise InputError(f'{name} has shape {array.shape}: it must be {shape}')
    if not np.isfinite(array).all():
      raise InputError(f'{name} has values that are NaN or infinite')
    return array

  def fit_predict(
    self, X: Any, y: Any = None, sample_weight: Any = None
  ) -> np.ndarray:
    """Fits rows `[N, D]` and labels them."""
    return self.fit(X, sample_weight=sample_weight).predict(X)

  def predict(self, X: Any) -> np.ndarray:
    """Labels `[N]` of the likeliest components."""
    return np.asarray(self._apply(gmm.predict, X))

  def predict_proba(self, X: Any) -> np.ndarray:
    """Probabilities `[N, K]` of the components given each row."""
    return np.asarray(self._apply(gmm.responsibilities, X), self._dtype)

  def score_samples(self, X: Any) -> np.ndarray:
    """Log-densities `[N]` of rows `[N, D]`."""
    return np.asarray(self._apply(gmm.log_prob, X), self._dtype)

  def score(self, X: Any, y: Any = None) -> float:
    """The mean log-density of rows `[N, D]`."""
    return float(self.score_samples(X).mean())

  def bic(self, X: Any, sample_weight: Any = None) -> float:
    """Bayesian information criterion of rows `[N, D]`; lower is better."""
    return float(self._apply(gmm.bic, X, sample_weight))

  def aic(self, X: Any, sample_weight: Any = None) -> float:
    """Akaike information criterion of rows `[N, D]`; lower is better."""
    return float(self._apply(gmm.aic, X, sample_weight))

  def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows `[n_samples, D]`, and the components they are from."""
    check_is_fitted(self)
    with words_of_sklearn():
      checks.check_count('n_samples', n_samples)
      x, labels = gmm.sample_with_labels(
        self._key(), self._params_less_origin(), n_samples
      )
    return self._plus_origin(x), np.asarray(labels)

  def _params_less_origin(self):
    means = self._less_origin(self.params_.means)
    return self.params_._replace(means=means)

  def _apply(self, fn, X, *args):
    x = self._read_centered(X, reset=False)
    return fn(self._params_less_origin(), x, *args)


def _inverse_transpose(factor):
  """Upper factors `[K, D, D]` of the inverse of lower ones, or `1 / factor`."""
  if factor.ndim == 2:
    return 1 / factor
  return np.triu(np.linalg.inv(factor.astype(np.float64)).mT).astype(
    factor.dtype
  )


def _factors(family, precisions):
  """scale_tril from precisions in scikit-learn's shape."""
  if family in ('diag', 'spherical'):
    if (precisions <= 0).any():
      raise InputError('precisions_init has values that are not above 0')
    scale = 1 / np.sqrt(precisions)
    return scale if family == 'diag' else scale[:, None]
  matrices = precisions if family == 'full' else precisions[None]
  try:
    np.linalg.cholesky(matrices)
    return np.linalg.cholesky(np.linalg.inv(matrices))
  except np.linalg.LinAlgError as error:
    raise InputError(
      'precisions_init has a matrix that is not positive definite'
    ) from error


def _square(factor):
  """Matrices of factors `[K, D, D]`, or squares of numbers."""
  return factor @ factor.mT if factor.ndim == 3 else np.square(factor)

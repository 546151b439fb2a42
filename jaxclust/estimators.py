"""k-means, Gaussian mixtures and the autoencoder as scikit-learn estimators.

Each checks its input as scikit-learn does, calls the functions of `kmeans`,
`gmm` or `training`, and keeps what they found as NumPy arrays under
scikit-learn's names. Numbers are float32, unless JAX has float64 enabled, and
labels int32. The clusterers read bytes as they are, without a copy in float32.

What is drawn comes from `random_state`: an int s is `jax.random.key(s)`, so
that the functions do the same with that key; of None or a RandomState a key is
drawn.

Axes: N rows, D features, K clusters or components, H height, W width,
C channels.
"""

import contextlib
import math
import numbers
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import (
  BaseEstimator,
  ClassNamePrefixFeaturesOutMixin,
  ClusterMixin,
  DensityMixin,
  TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxclust import autoencoder, gmm, kmeans, numerics, training
from jaxclust.autoencoder import Autoencoder
from jaxclust.gmm import GMMParams
from jaxclust.numerics import InputError

# What scikit-learn calls otherwise than the functions do.
_NAMES = {
  'num_clusters': 'n_clusters',
  'num_components': 'n_components',
  'num_restarts': 'n_init',
  'num_samples': 'n_samples',
  'max_steps': 'max_iter',
  'covariance': 'covariance_type',
  'num_epochs': 'epochs',
}

# scikit-learn's names of starts -> those of `gmm.fit`.
_STARTS = {
  'kmeans': 'k-means',
  'k-means++': 'k-means++',
  'random_from_data': 'random',
}

# Of arrays over components -> in scikit-learn's shape.
_SHAPES = {
  'full': lambda scale: scale,
  'tied': lambda scale: scale[0],
  'diag': lambda scale: scale,
  'spherical': lambda scale: scale[:, 0],
}


class KMeans(
  ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator
):
  """k-means, see `kmeans.fit`; clusters are numbered by falling size.

  Args:
    n_clusters: K.
    init: 'k-means++', 'k-means||', 'random', or centers `[K, D]` or
      `[R, K, D]`.
    n_init: R starts, made side by side; centers that are given bring their own.
    max_iter: most steps of a start.
    tol: of the squared shift of all centers, relative to the mean variance of
      the features, as scikit-learn's.
    metric: 'euclidean' or 'cosine'.
    random_state: see the module.

  Attributes:
    cluster_centers_: `[K, D]`.
    labels_: `[N]` int32.
    inertia_: weighted sum of the squared distances to the nearest center.
    n_iter_: steps of the best start.
  """

  def __init__(
    self,
    n_clusters=8,
    *,
    init='k-means++',
    n_init=10,
    max_iter=300,
    tol=1e-4,
    metric='euclidean',
    random_state=None,
  ):
    self.n_clusters = n_clusters
    self.init = init
    self.n_init = n_init
    self.max_iter = max_iter
    self.tol = tol
    self.metric = metric
    self.random_state = random_state

  def fit(self, X, y=None, sample_weight=None):
    """Clusters rows `[N, D]` of weights `[N]`."""
    x = _read(self, X)
    with _in_words_of_sklearn():
      result = kmeans.fit(
        _key(self.random_state),
        x,
        num_clusters=self.n_clusters,
        num_restarts=self.n_init,
        init=self.init,
        metric=self.metric,
        max_steps=self.max_iter,
        tol=self.tol,
        sample_weight=_weights(sample_weight),
      )
    self.cluster_centers_ = np.asarray(result.centers)
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
    return np.asarray(self._apply(kmeans.transform, X))

  def score(self, X, y=None, sample_weight=None):
    """The negative inertia of rows `[N, D]`."""
    return float(self._apply(kmeans.score, X, _weights(sample_weight)))

  def _apply(self, fn, X, *args):
    x = _read(self, X, reset=False)
    return fn(self.cluster_centers_, x, *args, metric=self.metric)

  @property
  def _n_features_out(self):
    return len(self.cluster_centers_)

  def __sklearn_tags__(self):
    return _in_float32(super().__sklearn_tags__())


class GaussianMixture(DensityMixin, BaseEstimator):
  """A mixture of Gaussians by EM, see `gmm.fit`; the heaviest comes first.

  Args:
    n_components: K.
    covariance_type: 'full', 'tied', 'diag' or 'spherical'.
    tol: a start has converged when a step gains at most this much `score`.
    reg: ridge on the covariances in units of the mean variance of the features,
      whereas scikit-learn's reg_covar is in units of the data.
    max_iter: most steps of a start.
    n_init: R starts.
    init_params: 'kmeans', 'k-means++' or 'random_from_data'.
    means_init: means `[K, D]` or `[R, K, D]` to start from in place of that,
      with equal weights and the covariance of the data, or None.
    random_state: see the module.

  Attributes:
    weights_: `[K]`.
    means_: `[K, D]`.
    covariances_: `[K, D, D]`, tied `[D, D]`, diag `[K, D]`, spherical `[K]`.
    precisions_: their inverses.
    precisions_cholesky_: upper triangles U such that `U U^T` is the inverse.
    params_: all of it, as the functions of `gmm` take it.
    converged_: whether the best start ended before max_iter.
    n_iter_: its steps.
    lower_bound_: its mean log-likelihood.
  """

  def __init__(
    self,
    n_components=1,
    *,
    covariance_type='full',
    tol=1e-3,
    reg=1e-6,
    max_iter=100,
    n_init=1,
    init_params='kmeans',
    means_init=None,
    random_state=None,
  ):
    self.n_components = n_components
    self.covariance_type = covariance_type
    self.tol = tol
    self.reg = reg
    self.max_iter = max_iter
    self.n_init = n_init
    self.init_params = init_params
    self.means_init = means_init
    self.random_state = random_state

  def fit(self, X, y=None, sample_weight=None):
    """Fits rows `[N, D]` of weights `[N]`."""
    x = _read(self, X)
    with _in_words_of_sklearn(init='means_init'):
      result = gmm.fit(
        _key(self.random_state),
        x,
        num_components=self.n_components,
        covariance=self.covariance_type,
        num_restarts=self.n_init,
        init=self._start(),
        max_steps=self.max_iter,
        tol=self.tol,
        reg=self.reg,
        sample_weight=_weights(sample_weight),
      )
    self._keep(result.params)
    self.converged_ = bool(result.converged)
    self.n_iter_ = int(result.num_steps)
    self.lower_bound_ = float(result.log_likelihood)
    return self

  def _start(self):
    if self.means_init is not None:
      return self.means_init
    start = _STARTS.get(str(self.init_params))
    if start is None:
      raise InputError(
        f'init_params is {self.init_params!r}: it must be one of '
        f'{", ".join(_STARTS)}; means go to means_init'
      )
    return start

  def _keep(self, params):
    """Holds a mixture, and what scikit-learn makes of its factors."""
    inverse = gmm.FAMILIES[self.covariance_type].precision(params.scale_tril)
    self.params_ = GMMParams(*map(np.asarray, params))
    self.weights_ = np.exp(self.params_.log_weights)
    self.means_ = self.params_.means
    factor, root = self.params_.scale_tril, np.asarray(inverse)
    if root.ndim == 3:
      root = root.mT
    shape = _SHAPES[self.covariance_type]
    self.covariances_ = shape(_square(factor))
    self.precisions_ = shape(_square(root))
    self.precisions_cholesky_ = shape(root)

  def fit_predict(self, X, y=None, sample_weight=None):
    """Fits rows `[N, D]` and labels them."""
    return self.fit(X, sample_weight=sample_weight).predict(X)

  def predict(self, X):
    """Labels `[N]` of the likeliest components."""
    return np.asarray(self._apply(gmm.predict, X))

  def predict_proba(self, X):
    """Probabilities `[N, K]` of the components given each row."""
    return np.asarray(self._apply(gmm.responsibilities, X))

  def score_samples(self, X):
    """Log-densities `[N]` of rows `[N, D]`."""
    return np.asarray(self._apply(gmm.log_prob, X))

  def score(self, X, y=None):
    """The mean log-density of rows `[N, D]`."""
    return float(self.score_samples(X).mean())

  def bic(self, X, sample_weight=None):
    """Bayesian information criterion of rows `[N, D]`; lower is better."""
    return float(self._apply(gmm.bic, X, _weights(sample_weight)))

  def aic(self, X, sample_weight=None):
    """Akaike information criterion of rows `[N, D]`; lower is better."""
    return float(self._apply(gmm.aic, X, _weights(sample_weight)))

  def sample(self, n_samples=1):
    """Draws rows `[n_samples, D]`, and the components they are from."""
    check_is_fitted(self)
    key = _key(self.random_state)
    with _in_words_of_sklearn():
      drawn = gmm.sample_with_labels(key, self.params_, n_samples)
    return tuple(map(np.asarray, drawn))

  def _apply(self, fn, X, *args):
    x = _read(self, X, reset=False)
    return fn(self.params_, x, *args)


class ConvAutoencoder(
  ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
  """The autoencoder of `autoencoder` on rows that are images.

  The network takes numbers from 0 to 1, which the least and the largest number
  of the rows that it is fitted to become. Other rows are shifted and divided
  alike and may leave that range; a reconstruction never falls below the least.

  Args:
    image_shape: (H, W) or (H, W, C) of a row; None for (1, D).
    features: channels of each level, which halves the image.
    epochs: over all rows.
    batch_size: rows of a step.
    learning_rate: of Adam.
    random_state: see the module.

  Attributes:
    params_: the network's variables.
    model_: the network, with which the functions of `training` take them.
    data_min_: the least number of all rows.
    data_max_: the largest.
    data_range_: their difference, or 1 if there is none.
    loss_curve_: `[epochs]` mean squared errors of numbers from 0 to 1.
  """

  def __init__(
    self,
    image_shape=None,
    *,
    features=(16, 8, 8),
    epochs=50,
    batch_size=256,
    learning_rate=1e-3,
    random_state=None,
  ):
    self.image_shape = image_shape
    self.features = features
    self.epochs = epochs
    self.batch_size = batch_size
    self.learning_rate = learning_rate
    self.random_state = random_state

  def fit(self, X, y=None):
    """Trains the network on rows `[N, D]`."""
    x = _read(self, X)
    numerics.check_points(x)
    autoencoder.check_options(features=self.features)
    shape = _image_shape(self.image_shape, x.shape[1])
    model = Autoencoder(shape, tuple(self.features))
    low, high = float(x.min()), float(x.max())
    span = high - low or 1.0
    with _in_words_of_sklearn():
      params, losses = training.fit(
        _key(self.random_state)[None],
        _as_images(x, low, span, shape),
        model=model,
        num_epochs=self.epochs,
        batch_size=self.batch_size,
        learning_rate=self.learning_rate,
      )
    if not (np.isfinite(losses).all() and training.is_finite(params).all()):
      raise InputError(
        f'learning_rate is {self.learning_rate}: in epoch {len(losses)} the '
        'network was no longer finite; lower it'
      )
    self.data_min_, self.data_max_, self.data_range_ = low, high, span
    self.model_ = model
    self.params_ = jax.tree.map(lambda a: np.asarray(a)[0], params)
    self.loss_curve_ = losses[:, 0]
    return self

  def transform(self, X):
    """Codes `[N, F]` of rows `[N, D]`."""
    return np.asarray(self._apply(training.encode, self._images(X)))

  def inverse_transform(self, X):
    """Rows `[N, D]` decoded from codes `[N, F]`."""
    check_is_fitted(self)
    codes = check_array(X, dtype=np.float32, input_name='X')
    if codes.shape[1] != self._n_features_out:
      raise InputError(
        f'X has {codes.shape[1]} features: it must have the '
        f'{self._n_features_out} of a code, as transform gives them'
      )
    images = self._apply(training.decode, codes)
    rows = np.asarray(images).reshape(len(codes), -1)
    return self.data_min_ + rows * self.data_range_

  def score(self, X, y=None):
    """The negative mean squared error of reconstructions of rows `[N, D]`."""
    errors = self._apply(training.errors, self._images(X))
    return -float(errors.mean()) * self.data_range_**2

  def _apply(self, fn, rows):
    options = {'model': self.model_, 'batch_size': self.batch_size}
    return fn(self.params_, rows, **options)

  def _images(self, X):
    x = _read(self, X, reset=False)
    shape = self.model_.image_shape
    return _as_images(x, self.data_min_, self.data_range_, shape)

  @property
  def _n_features_out(self):
    return autoencoder.code_size(self.model_.image_shape, self.model_.features)

  def __sklearn_tags__(self):
    return _in_float32(super().__sklearn_tags__())


def _read(estimator, X, reset=True):
  """Rows `[N, D]` in a dtype that the functions read; X has to have the
  features of the fit if there is no reset."""
  if not reset:
    check_is_fitted(estimator)
  dtypes = [np.float32, np.uint8]
  if jax.config.jax_enable_x64:
    dtypes = [np.float64, *dtypes]
  return validate_data(estimator, X, reset=reset, dtype=dtypes)


def _square(factor):
  """Matrices of factors `[K, D, D]`, or squares of numbers."""
  return factor @ factor.mT if factor.ndim == 3 else np.square(factor)


def _weights(sample_weight):
  """Weights `[N]` of any kind of sequence as an array."""
  return None if sample_weight is None else np.asarray(sample_weight)


def _key(random_state):
  if not isinstance(random_state, numbers.Integral):
    draw = check_random_state(random_state).randint
    random_state = draw(np.iinfo(np.int32).max)
  return jax.random.key(random_state)


def _image_shape(image_shape, num_features):
  """(H, W, C) of a row."""
  if image_shape is None:
    return 1, num_features, 1
  shape = tuple(image_shape)
  for size in shape:
    numerics.check_count('each of image_shape', size)
  if len(shape) not in (2, 3) or math.prod(shape) != num_features:
    raise InputError(
      f'image_shape is {image_shape!r}: it must be (H, W) or (H, W, C) with a '
      f'product of {num_features}, as X has {num_features} features'
    )
  return shape if len(shape) == 3 else (*shape, 1)


def _as_images(x, low, span, shape):
  """Rows `[N, D]` as floats `[N, H, W, C]`: 0 for low, 1 for low + span."""
  pixels = (jnp.asarray(x, jnp.float32) - low) / span
  return pixels.reshape(-1, *shape)


def _in_float32(tags):
  tags.transformer_tags.preserves_dtype = ['float32']
  return tags


@contextlib.contextmanager
def _in_words_of_sklearn(**names):
  """Errors and warnings of the functions name the estimators' parameters, and
  warnings of a fit are scikit-learn's."""
  names = _NAMES | names
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      yield
    except InputError as error:
      raise InputError(_rename(error, names)) from error
  for warning in caught:
    known = warning.category is UserWarning
    category = ConvergenceWarning if known else warning.category
    warnings.warn(_rename(warning.message, names), category, stacklevel=4)


def _rename(message, names):
  return re.sub(r'\w+', lambda word: names.get(word[0], word[0]), str(message))

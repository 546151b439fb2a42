"""The convolutional autoencoder as an estimator.

Axes: N rows, D features, H height, W width, C channels, F numbers of a code.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import (
  BaseEstimator,
  ClassNamePrefixFeaturesOutMixin,
  TransformerMixin,
)
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from jaxclust import autoencoder, checks, training
from jaxclust.autoencoder import Autoencoder
from jaxclust.errors import InputError
from jaxclust.estimators.base import ReadMixin, parameters, words_of_sklearn
from jaxclust.inputs import check_values, place


@parameters
class ConvAutoencoder(
  ReadMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
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
    random_state: see the package.

  Attributes:
    params_: the network's variables.
    model_: the network, with which the functions of `training` take them.
    data_min_: the least number of all rows.
    data_max_: the largest.
    data_range_: their difference, or 1 if there is none.
    loss_curve_: `[epochs]` mean squared errors of numbers from 0 to 1.
  """

  image_shape: Any = None
  _: dataclasses.KW_ONLY
  features: Any = (16, 8, 8)
  epochs: int = 50
  batch_size: int = 256
  learning_rate: float = 1e-3
  random_state: Any = None

  def fit(self, X, y=None):
    """Trains the network on rows `[N, D]`."""
    x = self._read(X)
    check_values(place(x))
    autoencoder.check_options(features=self.features)
    shape = _image_shape(self.image_shape, x.shape[1])
    model = Autoencoder(shape, tuple(self.features))
    low, high = float(x.min()), float(x.max())
    span = high - low or 1.0
    with words_of_sklearn():
      params, losses = training.fit(
        self._key()[None],
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
    x = self._read(X, reset=False)
    shape = self.model_.image_shape
    return _as_images(x, self.data_min_, self.data_range_, shape)

  @property
  def _n_features_out(self):
    return autoencoder.code_size(self.model_.image_shape, self.model_.features)


def _image_shape(image_shape, num_features):
  """(H, W, C) of a row."""
  if image_shape is None:
    return 1, num_features, 1
  shape = tuple(image_shape)
  for size in shape:
    checks.check_count('each of image_shape', size)
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

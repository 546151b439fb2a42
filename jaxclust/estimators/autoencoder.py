"""The convolutional autoencoder as an estimator.

Axes: N rows, D features, H height, W width, C channels, F numbers of a code.
"""

import dataclasses
import math
from typing import Any, Self

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

from jaxclust import checks, encoding, networks, plans, training
from jaxclust.defaults import TRAINING
from jaxclust.errors import InputError, RunError
from jaxclust.estimators.base import ReadMixin, parameters, words_of_sklearn
from jaxclust.inputs import check_values, place
from jaxclust.methods import METHODS

METHOD = METHODS['autoencoder']


@parameters
class ConvAutoencoder(
  ReadMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
  """The convolutional autoencoder of `networks` on rows that are images.

  The network takes numbers from 0 to 1. A shift and a division by one number
  map the rows of the fit to that range. They are the same for other rows, which
  may leave the range. A reconstruction never falls below the least number of
  the fit.

  Examples:
    >>> rows = np.eye(8, dtype=np.float32)
    >>> found = ConvAutoencoder((4, 2), features=(3,), epochs=1).fit(rows)
    >>> found.transform(rows).shape
    (8, 6)

  Args:
    image_shape: (H, W) or (H, W, C) of a row; None for (1, D).
    features: channels of each level, which halves the image; () for those of
      the network.
    epochs: over all rows.
    batch_size: rows of a step.
    learning_rate: of Adam.
    random_state: see the package.

  Attributes:
    params_: the network's variables.
    model_: the network.
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

  def fit(self, X: Any, y: Any = None) -> Self:
    """Trains the network on rows `[N, D]`."""
    x = self._read(X)
    check_values(place(x))
    shape = _image_shape(self.image_shape, x.shape[1])
    low, high = float(x.min()), float(x.max())
    span = high - low or 1.0
    options = TRAINING | {
      'num_epochs': self.epochs,
      'batch_size': self.batch_size,
      'learning_rate': self.learning_rate,
    }
    with words_of_sklearn():
      networks.check_options(name='conv', features=self.features)
      network = networks.build(shape, features=self.features)
      plans.check_options(len(x), METHOD(network), options)
      images = _as_images(x, low, span, shape)
      params, losses = _train(network, images, self._key(), options)
    self.data_min_, self.data_max_, self.data_range_ = low, high, span
    self.model_, self.params_ = network, params
    self.loss_curve_ = losses
    return self

  def transform(self, X: Any) -> np.ndarray:
    """Codes `[N, F]` of rows `[N, D]`."""
    return np.asarray(self._apply(encoding.embed, self._images(X)))

  def inverse_transform(self, X: Any) -> np.ndarray:
    """Rows `[N, D]` decoded from codes `[N, F]`."""
    check_is_fitted(self)
    codes = check_array(X, dtype=np.float32, input_name='X')
    if codes.shape[1] != self._n_features_out:
      raise InputError(
        f'X has {codes.shape[1]} features: it must have the '
        f'{self._n_features_out} of a code, as transform gives them'
      )
    images = self._apply(encoding.decode, codes)
    rows = np.asarray(images).reshape(len(codes), -1)
    return self.data_min_ + rows * self.data_range_

  def score(self, X: Any, y: Any = None) -> float:
    """The negative mean squared error of reconstructions of rows `[N, D]`."""
    errors = self._apply(encoding.errors, self._images(X))
    return -float(errors.mean()) * self.data_range_**2

  def _apply(self, fn, rows):
    return fn(METHOD(self.model_), self.params_, rows, self.batch_size)

  def _images(self, X):
    x = self._read(X, reset=False)
    shape = self.model_.image_shape
    return _as_images(x, self.data_min_, self.data_range_, shape)

  @property
  def _n_features_out(self):
    return self.model_.code_size()


def _train(network, images, key, options):
  """The variables of a trained network, and its losses `[E]` in E epochs."""
  plan = plans.plan(METHOD, network, images, None, key[None], options)
  course = training.start(plan, training.blank(plan))
  losses = []
  try:
    for now in training.run(plan, course):
      course = now.course
      if now.losses is not None:
        losses.append(now.losses['train_loss'][0])
  except RunError as error:
    raise InputError(str(error)) from error
  params = training.final_params(plan, course)
  return jax.tree.map(lambda a: np.asarray(a)[0], params), np.array(losses)


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

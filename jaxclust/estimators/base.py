"""Input, keys and messages of the estimators, in scikit-learn's words.

Axes: N rows, D features.
"""

import contextlib
import dataclasses
import numbers
import re

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxclust import checks, runtime
from jaxclust.errors import InputError

# The functions' name of a parameter -> scikit-learn's.
_NAMES = {
  'num_clusters': 'n_clusters',
  'num_components': 'n_components',
  'num_restarts': 'n_init',
  'num_samples': 'n_samples',
  'max_steps': 'max_iter',
  'covariance': 'covariance_type',
  'num_epochs': 'epochs',
}

# Messages of the functions -> scikit-learn's, which callers may filter by.
_MESSAGES = (
  (
    r'n_(clusters|components) is (\d+), but x has only (\d+) rows',
    r'n_samples=\3 should be >= n_\1=\2',
  ),
  (r'n_samples is (.*): it', r"Invalid value for 'n_samples': \1. It"),
  (
    r'k-means found (\d+) distinct of (\d+) clusters: .*',
    r'Number of distinct clusters (\1) found smaller than n_clusters (\2). '
    'Possibly due to duplicate points in X.',
  ),
  (
    'EM did not converge in .*',
    'Best performing initialization did not converge. Try different init '
    'parameters, or increase max_iter, tol, or check for degenerate data.',
  ),
)

# Makes a class with a field for each parameter, in the way of scikit-learn:
# the constructor stores them, and does nothing else.
parameters = dataclasses.dataclass(eq=False, repr=False)


class ReadMixin:
  """Reads rows and random states of the caller."""

  _reads_sparse = False
  _preserves = ('float32',)  # dtypes of rows that `transform` returns alike

  def _read(self, X, reset=True):
    """Rows `[N, D]` in a dtype that the functions read; without a reset, X must
    have the features of the fit."""
    if not reset:
      check_is_fitted(self)
    dtypes = [np.float32, np.uint8]
    if jax.config.jax_enable_x64:
      dtypes = [np.float64, *dtypes]
    return validate_data(self, X, reset=reset, dtype=dtypes)

  def _read_centered(self, X, sample_weight=None, reset=True, about_mean=True):
    """Rows likewise, as differences from the weighted mean of the fit if that
    is float64 and JAX has no such numbers, as float32 may not tell them apart.
    """
    if not reset:
      check_is_fitted(self)
    x = validate_data(
      self,
      X,
      reset=reset,
      dtype=[np.float64, np.float32, np.uint8],
      accept_sparse='csr' if self._reads_sparse else False,
    )
    x = x.toarray() if hasattr(x, 'toarray') else x
    if reset:
      is_wide = x.dtype == np.float64
      self._dtype = np.float64 if is_wide else np.float32
      is_cut = is_wide and about_mean and not jax.config.jax_enable_x64
      with np.errstate(over='ignore'):  # the functions report infinities
        self._origin = weighted_mean(x, sample_weight) if is_cut else None
    return self._less_origin(x)

  def _less_origin(self, x):
    """Rows `[..., D]` as differences from the origin, if there is one."""
    if self._origin is None:
      cut = x.dtype == np.float64 and not jax.config.jax_enable_x64
      return x.astype(np.float32) if cut else x
    less = np.empty(x.shape, np.float32)
    with np.errstate(over='ignore', invalid='ignore'):
      return np.subtract(x, self._origin, out=less, casting='same_kind')

  def _start_less_origin(self, name, centers, num_clusters):
    """Centers to start from, `[K, D]` or `[R, K, D]`, likewise."""
    centers = checks.as_real(name, centers)
    wanted = {
      'features of the data': self.n_features_in_, 'clusters': num_clusters
    }  # fmt: skip
    for (what, count), found in zip(
      wanted.items(), (*centers.shape[::-1], None, None), strict=False
    ):
      if found != count:
        raise InputError(
          f'The shape of the initial centers {centers.shape} does not match '
          f'the number of {what} {count}: {name} must end in '
          f'[{num_clusters}, {self.n_features_in_}]'
        )
    return self._less_origin(centers)

  def _plus_origin(self, x):
    """Rows `[..., D]` in the data's units, in the dtype of the fit."""
    x = np.asarray(x, self._dtype)
    return x if self._origin is None else x + self._origin

  def _key(self):
    """The random key of a call, with which JAX begins to work."""
    runtime.check_device()
    seed = self.random_state
    if not isinstance(seed, numbers.Integral):
      seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
    return jax.random.key(seed)

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.input_tags.sparse = self._reads_sparse
    if tags.transformer_tags is not None:
      tags.transformer_tags.preserves_dtype = list(self._preserves)
    return tags


def weighted_mean(x, sample_weight):
  """The mean `[D]` float64 of rows `[N, D]` of weights `[N]`, 1 if None."""
  if sample_weight is None:
    return x.mean(axis=0, dtype=np.float64)
  weight = checks.check_weights(sample_weight, len(x), np.float64)
  return weight @ x / weight.sum()


@contextlib.contextmanager
def words_of_sklearn(**names):
  """Translates errors and warnings of the functions.

  They name parameters as `_NAMES` and `names` say, and warnings of a fit become
  scikit-learn's.
  """
  names = _NAMES | names

  def words(message):
    return _rename(message, names), ConvergenceWarning

  try:
    with checks.wording(words):
      yield
  except InputError as error:
    raise InputError(_rename(error, names)) from error


def _rename(message, names):
  message = re.sub(
    r'\w+', lambda word: names.get(word[0], word[0]), str(message)
  )
  for ours, theirs in _MESSAGES:
    message = re.sub(ours, theirs, message)
  return message


def warn_of_argument(message):
  """Warns that an argument has no effect, or another one, as scikit-learn
  does."""
  with checks.wording(lambda message: (message, RuntimeWarning)):
    checks.warn(message)

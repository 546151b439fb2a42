"""Input, keys and messages of the estimators, in scikit-learn's words.

Axes: N rows, D features.
"""

import contextlib
import dataclasses
import numbers
import re
import warnings

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

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

# Makes a class with a field for each parameter, in the way of scikit-learn:
# the constructor stores them, and does nothing else.
parameters = dataclasses.dataclass(eq=False, repr=False)


class ReadMixin:
  """Reads rows and random states of the caller."""

  def _read(self, X, reset=True):
    """Rows `[N, D]` in a dtype that the functions read; without a reset, X must
    have the features of the fit."""
    if not reset:
      check_is_fitted(self)
    dtypes = [np.float32, np.uint8]
    if jax.config.jax_enable_x64:
      dtypes = [np.float64, *dtypes]
    return validate_data(self, X, reset=reset, dtype=dtypes)

  def _key(self):
    """The random key of a call."""
    seed = self.random_state
    if not isinstance(seed, numbers.Integral):
      seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
    return jax.random.key(seed)

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    if tags.transformer_tags is not None:
      tags.transformer_tags.preserves_dtype = ['float32']
    return tags


@contextlib.contextmanager
def words_of_sklearn(**names):
  """Translates errors and warnings of the functions.

  They name parameters as `_NAMES` and `names` say, and warnings of a fit become
  scikit-learn's.
  """
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

"""Clustering of images by learned representation, in JAX."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the names below are, for checkers and editors
  from jaxclust.algorithms import gmm, kmeans
  from jaxclust.runtime import keep_programs
  from jaxclust.storage import load

# Public name -> where it is.
_PLACES = {
  'gmm': 'jaxclust.algorithms.gmm',
  'kmeans': 'jaxclust.algorithms.kmeans',
  'keep_programs': 'jaxclust.runtime:keep_programs',
  'load': 'jaxclust.storage:load',
}

__all__ = ['gmm', 'keep_programs', 'kmeans', 'load']


def __getattr__(name):
  """Imports a module at its first use: `jaxclust --help` needs no JAX."""
  if name not in _PLACES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, function = _PLACES[name].partition(':')
  found = importlib.import_module(module)
  return getattr(found, function) if function else found


def __dir__():
  return __all__

"""Clustering of images by learned representation, in JAX."""

import importlib

__all__ = [
  'autoencoder',
  'gmm',
  'kmeans',
  'layers',
  'load',
  'numerics',
  'training',
]


def __getattr__(name):
  """Imports a module at its first use: `jaxclust --help` needs no JAX."""
  if name == 'load':
    return importlib.import_module('jaxclust.inference').load
  if name in __all__:
    return importlib.import_module(f'jaxclust.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return __all__

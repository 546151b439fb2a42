"""Clustering of images by learned representation, in JAX."""

from jaxclust import autoencoder, gmm, kmeans, layers, numerics, training

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
  """`load`, whose libraries take a second to import."""
  if name == 'load':
    from jaxclust.inference import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

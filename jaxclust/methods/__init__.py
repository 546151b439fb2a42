"""Representations, and clusters with them: a file for each method."""

from jaxclust.methods.autoencoder import autoencoder
from jaxclust.methods.dec import dec
from jaxclust.methods.method import Batch, Method

__all__ = ['METHODS', 'Batch', 'Method']

# Name -> (network, **options) -> Method.
METHODS = {
  'autoencoder': autoencoder,
  'dec': dec,
}

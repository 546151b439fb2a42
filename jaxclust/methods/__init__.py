"""Representations, and clusters with them: a file for each method."""

from jaxclust.methods.autoencoder import autoencoder
from jaxclust.methods.dec import dec
from jaxclust.methods.method import Batch, Method
from jaxclust.methods.prototypes import prototypes

__all__ = ['METHODS', 'Batch', 'Method']

# Name -> (network, **options) -> Method.
METHODS = {
  'autoencoder': autoencoder,
  'dec': dec,
  'prototypes': prototypes,
}

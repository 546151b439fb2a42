"""Representations, and clusters with them: a file for each method."""

from jaxclust.methods.autoencoder import autoencoder
from jaxclust.methods.committee import committee
from jaxclust.methods.dcn import dcn
from jaxclust.methods.dec import dec
from jaxclust.methods.method import Batch, Method
from jaxclust.methods.neighbors import neighbors, self_labels
from jaxclust.methods.prototypes import prototypes
from jaxclust.methods.vade import vade

__all__ = ['METHODS', 'Batch', 'Method', 'committee']

# Name -> (network, **options) -> Method.
METHODS = {
  'autoencoder': autoencoder,
  'dec': dec,
  'dcn': dcn,
  'vade': vade,
  'prototypes': prototypes,
  'neighbors': neighbors,
  'self_labels': self_labels,
}

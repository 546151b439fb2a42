"""k-means, Gaussian mixtures and the autoencoder as scikit-learn estimators.

Each checks its input as scikit-learn does, calls the functions of the package,
and keeps their results as NumPy arrays under scikit-learn's names. Numbers are
float32, unless JAX has float64 enabled, and labels int32. The clusterers read
bytes as they are, without a copy in float32. Rows of float64 they read as
float32 differences from the mean, and their results are float64.

Draws come from `random_state`: an int s stands for `jax.random.key(s)`, so that
the functions return the same with that key. For None or a RandomState, a key is
drawn.
"""

from typing import TYPE_CHECKING, Any

from jaxclust.estimators.kmeans import KMeans
from jaxclust.estimators.minibatch import MiniBatchKMeans
from jaxclust.estimators.mixture import GaussianMixture

if TYPE_CHECKING:
  from jaxclust.estimators.autoencoder import ConvAutoencoder

__all__ = ['ConvAutoencoder', 'GaussianMixture', 'KMeans', 'MiniBatchKMeans']


def __getattr__(name: str) -> Any:
  """Imports the network's estimator at its first use: it needs Flax and Optax,
  which take a second."""
  if name != 'ConvAutoencoder':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from jaxclust.estimators.autoencoder import ConvAutoencoder

  return ConvAutoencoder

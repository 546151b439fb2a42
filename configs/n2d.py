r"""An autoencoder, places by the graph of neighbours in its code, a mixture.

  python launch.py --config=configs/n2d.py
  python launch.py --config=configs/n2d.py:digits

It is N2D (McConville et al. 2021) with exact neighbours and a spectral
embedding in the place of UMAP. The mixture's covariances are full.

Takes digits 2 min, on two cores.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.pipeline(variant, ('autoencoder',), clusterer='gmm')
  config.network = {'name': 'mlp', 'features': ()}  # (): its own
  config.manifold = {
    'num_neighbors': 10,
    'num_features': 10,  # of a place
  }
  config.gmm = {
    'num_components': 10,
    'covariance': 'full',
    'num_restarts': 10,
    'init': 'k-means',
    'max_steps': 200,
    'tol': 1e-3,
    'reg': 1e-2,
  }
  return config

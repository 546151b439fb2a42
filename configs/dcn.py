r"""Deep clustering network (DCN): an autoencoder, then k-means in its code.

  python launch.py --config=configs/dcn.py
  python launch.py --config=configs/dcn.py:digits

An autoencoder is trained first; reconstruction and distances from the nearest
centers then train it further, as in Yang et al. (2017).

Takes digits 3 min, on two cores.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.pipeline(variant, ('autoencoder', 'dcn'), clusterer='')
  config.network = {'name': 'mlp', 'features': ()}  # (): its own
  config.dcn = {
    'num_clusters': 10,
    'num_restarts': 20,
    'closeness': 0.05,  # weight of the squared distances
    # In place of the options of config.training:
    'num_epochs': 50,
    'learning_rate': 1e-4,
  }
  return config

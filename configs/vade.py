r"""Variational deep embedding (VaDE): an autoencoder, then a mixture as prior.

  python launch.py --config=configs/vade.py
  python launch.py --config=configs/vade.py:digits

An autoencoder and a mixture of its codes are what the evidence lower bound of
Jiang et al. (2017) starts from.

Takes digits 3 min, on two cores.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.pipeline(variant, ('autoencoder', 'vade'), clusterer='')
  config.network = {'name': 'mlp', 'features': ()}  # (): its own
  config.vade = {
    'num_clusters': 10,
    'num_restarts': 5,
    'deviation': 0.2,  # of a pixel about its reconstruction
    'reg': 1e-2,  # ridge of the mixture that the prior starts from
    # In place of the options of config.training:
    'num_epochs': 50,
    'learning_rate': 1e-4,
  }
  return config

r"""Deep embedded clustering: an autoencoder, then DEC on its code.

  python launch.py --config=configs/dec.py
  python launch.py --config=configs/dec.py:digits
  python launch.py --config=configs/dec.py --config.dec.divergence=.1 \
    --config.dec.reconstruction=1.  # IDEC

The network and the optimisers are those of Xie et al. (2016), but that the
autoencoder is trained as a whole instead of layer by layer.

Takes digits 2 min, on two cores.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.pipeline(variant, ('autoencoder', 'dec'), clusterer='')
  config.network = {'name': 'mlp', 'features': ()}  # (): its own
  config.dec = {
    'num_clusters': 10,
    'num_restarts': 20,
    'divergence': 1.0,  # weight of the divergence from the targets
    'reconstruction': 0.0,  # weight of the mean squared error
    # In place of the options of config.training:
    'num_epochs': 50,
    'optimizer': 'sgd',
    'learning_rate': 1e-2,
  }
  return config

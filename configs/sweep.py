"""How many clusters? Five criteria over a range of numbers, without labels.

python launch.py --config=configs/sweep.py
python launch.py --config=configs/sweep.py:digits
python launch.py --config=configs/sweep.py --config.stages="()"  # of pixels
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('sweep', variant)
  config.stages = ('autoencoder',)
  defaults.represent(config, variant)
  config.sweep = {
    'num_clusters': (2, 4, 6, 8, 9, 10, 11, 12, 14, 16, 20),
    'num_restarts': 10,
    'covariance': 'full',
    'reg': 1e-2,
  }
  return config

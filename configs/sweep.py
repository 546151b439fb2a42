r"""How many clusters? Six criteria over a range of numbers, without labels.

  python launch.py --config=configs/sweep.py
  python launch.py --config=configs/sweep.py:digits
  python launch.py --config=configs/sweep.py --config.stages="()"  # of pixels

The embedding is that of configs/prototypes.py. It does not depend on the number
of clusters there, as gradients of the heads do not reach it.

Takes digits 3 min, on two cores.
"""

import pathlib

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('sweep', variant)
  folder = pathlib.Path(__file__).parent
  own = defaults.of_file(folder / 'prototypes.py', variant)
  for name in ('stages', 'network', 'training', 'standardize', *own.stages):
    config[name] = own[name]
  config.data.size = own.data.size
  config.sweep = {
    'num_clusters': (2, 4, 6, 8, 9, 10, 11, 12, 14, 16, 20),
    'num_restarts': 10,
    'unit_length': True,  # divide each row of the embedding by its length
    'covariance': 'diag',  # 'full' takes long in so many dimensions
    'reg': 1e-2,
  }
  return config

r"""All methods on the same images, several seeds of each.

  python launch.py --config=configs/leaderboard.py
  python launch.py --config=configs/leaderboard.py:digits

Each method is its own config, in a folder of its name; `config.methods` says
which take part, and `--config.runs.dec...` changes one. A leaderboard that was
stopped goes on where it was.

Takes digits 80 min, on two cores.
"""

import pathlib

from jaxclust import defaults

# Name -> config, and what is changed of it.
_RUNS = {
  'kmeans': ('kmeans', {}),
  'autoencoder_kmeans': ('ae_kmeans', {}),
  'autoencoder_gmm': ('gmm', {}),
  'n2d': ('n2d', {}),
  'dec': ('dec', {}),
  'idec': ('dec', {'dec': {'divergence': 0.1, 'reconstruction': 1.0}}),
  'dcn': ('dcn', {}),
  'vade': ('vade', {}),
  'prototypes': ('prototypes', {}),
  'prototypes_neighbors': (
    'prototypes',
    {'stages': ('prototypes', 'neighbors'), 'spread': {'num_neighbors': 0}},
  ),
}


def get_config(variant: str = 'fashion_mnist'):
  folder = pathlib.Path(__file__).parent
  config = defaults.several('leaderboard', variant, folder, _RUNS)
  config.methods = tuple(_RUNS)
  return config

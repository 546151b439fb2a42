r"""All methods on the same images, several seeds of each.

  python launch.py --config=configs/leaderboard.py
  python launch.py --config=configs/leaderboard.py:digits

Each method is its own config, in a folder of its name; `config.methods` says
which take part, and `--config.runs.dec...` changes one. A leaderboard that was
stopped goes on where it was.
"""

import pathlib
import runpy

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
    {'stages': ('prototypes', 'neighbors')},
  ),
}

# Values of a run that are those of the leaderboard.
_SHARED = ('data', 'seed', 'num_seeds', 'tensorboard')


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('leaderboard', variant)
  config.num_seeds = 5
  config.methods = tuple(_RUNS)
  config.runs = {}
  for name, (file, changes) in _RUNS.items():
    path = pathlib.Path(__file__).with_name(f'{file}.py')
    own = runpy.run_path(str(path))['get_config'](variant)
    own.update(changes)
    for key in _SHARED:
      del own[key]
    config.runs[name] = own
  return config

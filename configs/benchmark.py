r"""This code against other libraries, on the same arrays and starts.

  python launch.py --config=configs/benchmark.py
  python launch.py --config=configs/benchmark.py:digits
  python launch.py --config=configs/benchmark.py:digits \
    --config.benchmark.groups="('layers',)"
  python launch.py --config=configs/benchmark.py:digits \
    --config.benchmark.groups="('latency',)"
  python launch.py --config=configs/benchmark.py:digits \
    --config.benchmark.groups="('scaling',)"

Peers are those installed: scikit-learn; faiss with `.[peers]`, torch with
`.[torch]`, Keras on TensorFlow with `.[keras]`. On an accelerator it is torch
alone. Run it on an idle machine; a run that was stopped goes on with its next
row.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('benchmark', variant)
  config.benchmark = {
    # And 'layers': each layer of the network alone, without peers; 'latency':
    # first calls on few rows, each in a new process; 'scaling': k-means on
    # generated points, up to 3 GB of them, for some hours.
    'groups': ('kmeans', 'mixtures', 'autoencoder'),
    'rounds': 5,
    'patience': 300.0,  # seconds of a row after which no further round begins
    'limit_size': 2048,  # rows of the matrices that time the machine
    'kmeans': {
      'num_clusters': 10,  # of the seeding, and of the fit to convergence
      'num_restarts': 10,
      'many_clusters': 100,  # of the fit of one start
      'many_steps': 25,
    },
    'mixtures': {
      'num_components': 10,
      'covariances': ('full', 'full', 'tied', 'diag', 'spherical'),
      'dims': (32, 128, 128, 128, 128),  # principal components, for each
      'em_steps': 30,
    },
    'autoencoder': {
      'features': (16, 8, 8),
      'batch_size': 256,
      'learning_rate': 1e-3,
      'dtype': 'float32',  # or bfloat16, of activations
      'num_seeds': 1,  # networks side by side
    },
    'scaling': {
      'points': (  # and features, of the fits
        *((60_000, 32), (60_000, 128), (60_000, 784)),
        *((600_000, 32), (600_000, 128)),
        *((6_000_000, 32), (6_000_000, 128)),
      ),
      'num_clusters': (10, 100, 1000),  # of each of them
      'num_steps': 20,
      'batches': (  # points, features and clusters of fits on mini-batches
        *((600_000, 32, 10), (600_000, 32, 100)),
        (600_000, 128, 100),
      ),
      'batch_size': 1024,
      'seedings': (
        ('k-means++', 600_000, 32, 10),
        ('k-means++', 600_000, 128, 100),
        ('k-means||', 600_000, 128, 1000),
      ),
    },
    'latency': {
      'works': ('import', 'kmeans', 'mixture', 'clusters', 'rows', 'search'),
    },
  }
  if variant == 'digits':
    config.benchmark.kmeans.many_clusters = 50
    config.benchmark.mixtures.dims = (16, 32, 32, 32, 32)
    config.benchmark.autoencoder.features = (16, 8)
    config.benchmark.autoencoder.batch_size = 64
  return config

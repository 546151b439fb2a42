r"""This code against other libraries, on the same arrays and starts.

  python launch.py --config=configs/benchmark.py
  python launch.py --config=configs/benchmark.py:digits
  python launch.py --config=configs/benchmark.py:digits \
    --config.benchmark.groups="('layers',)"
  python launch.py --config=configs/benchmark.py:digits \
    --config.benchmark.groups="('latency',)"

Peers are those installed: scikit-learn; faiss with `.[peers]`, torch with
`.[torch]`, Keras on TensorFlow with `.[keras]`. On an accelerator it is torch
alone. Run it on an idle machine.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('benchmark', variant)
  config.benchmark = {
    # And 'layers': each layer of the network alone, without peers; 'latency':
    # first calls on few rows, each in a new process.
    'groups': ('kmeans', 'mixtures', 'autoencoder'),
    'rounds': 5,
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

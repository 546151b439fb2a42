"""k-means and mixtures against other libraries, on the same arrays and starts.

  python launch.py --config=configs/benchmark.py
  python launch.py --config=configs/benchmark.py:digits

Peers are those installed: scikit-learn; faiss with `.[peers]`, torch with
`.[torch]`. On an accelerator it is torch alone. Run it on an idle machine.
"""

from ml_collections import ConfigDict


def get_config(variant: str = 'fashion_mnist') -> ConfigDict:
  config = ConfigDict()
  config.experiment = 'benchmark'
  config.seed = 0
  config.data = ConfigDict({'name': variant, 'dir': '', 'raw_dir': ''})
  config.benchmark = ConfigDict(
    {
      'num_clusters': 10,  # of the seeding, and of the fit to convergence
      'num_restarts': 10,
      'many_clusters': 100,  # of the fit of one start
      'many_steps': 25,
      'num_components': 10,
      'covariances': ('full', 'full', 'tied', 'diag', 'spherical'),
      'dims': (32, 128, 128, 128, 128),  # principal components, for each
      'em_steps': 30,
      'rounds': 5,
      'limit_size': 2048,  # rows of the matrices that time the machine
    }
  )
  if variant == 'digits':
    config.benchmark.many_clusters = 50
    config.benchmark.dims = (16, 32, 32, 32, 32)
  elif variant != 'fashion_mnist':
    raise ValueError(
      f'the variant is {variant!r}: it must be fashion_mnist or digits'
    )
  return config

"""An autoencoder, k-means on its code: part 2 of the student report.

python launch.py --config=configs/ae_kmeans.py
python launch.py --config=configs/ae_kmeans.py:digits

Takes 6 min, digits 1 min, on two cores.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.pipeline(variant, ('autoencoder',), clusterer='kmeans')
  config.kmeans = defaults.kmeans()
  if variant == 'fashion_mnist':
    # The report calls the adjusted Rand index its accuracy.
    config.reference = {
      'dataset': 'fashion_mnist',
      'train': {
        'ari': 0.3524,
        'cluster_purity': (
          *(0.7270, 0.9595, 0.5011, 0.4143, 0.9481),
          *(0.5585, 0.5327, 0.4473, 0.5856, 0.2762),
        ),
      },
      'test': {
        'ari': 0.3464,
        'cluster_purity': (
          *(0.7117, 0.9619, 0.5105, 0.3926, 0.9256),
          *(0.5634, 0.5396, 0.4551, 0.5805, 0.2725),
        ),
      },
    }
  return config

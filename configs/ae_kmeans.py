"""Part 2 of the report: an autoencoder, then k-means on its code.

python launch.py --config=configs/ae_kmeans.py
python launch.py --config=configs/ae_kmeans.py:digits
"""

from ml_collections import ConfigDict


def get_config(variant: str = 'fashion_mnist') -> ConfigDict:
  config = ConfigDict()
  config.experiment = 'ae_kmeans'
  config.seed = 0
  config.num_seeds = 1  # runs, with seeds from there on
  config.data = ConfigDict(
    {'name': variant, 'dir': '', 'raw_dir': '', 'size': ()}
  )
  config.autoencoder = ConfigDict({'features': (16, 8, 8)})
  config.training = ConfigDict(
    {
      'num_epochs': 50,
      'batch_size': 256,
      'learning_rate': 1e-3,
      'schedule': 'constant',  # or 'cosine', down to 0
      'warmup_epochs': 0.0,
      'clip_norm': 0.0,  # the largest norm of a gradient; 0: any
      'noise': 0.0,  # standard deviation of what is to be removed
      'max_shift': 0.0,  # pixels
      'max_rotation': 0.0,  # degrees
      'patience': 0,  # epochs without a lower validation loss; 0: make all
      'holdout': 0.1,  # share of images that validate, if there is patience
      'dtype': 'float32',  # or 'bfloat16', of activations
      'placement': 'auto',  # of images: 'device', 'host' to stream them
    }
  )
  config.standardize = False  # divide each number of the code by its spread
  config.kmeans = ConfigDict(
    {
      'num_clusters': 10,
      'num_restarts': 10,
      'init': 'k-means++',
      'max_steps': 300,
      'tol': 1e-4,
    }
  )
  config.embedding = 'pca'  # of the map on the page; or 'tsne' beside it
  config.tensorboard = False
  # What the report publishes; it calls the adjusted Rand index its accuracy.
  config.reference = ConfigDict()
  if variant == 'digits':
    config.autoencoder.features = (16, 8)
    config.training.num_epochs = 100
    config.training.batch_size = 64
  elif variant == 'fashion_mnist':
    config.reference = ConfigDict(
      {
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
    )
  else:
    raise ValueError(
      f'the variant is {variant!r}: it must be fashion_mnist or digits'
    )
  return config

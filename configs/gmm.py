"""Part 3 of the report, the flagship: an autoencoder, a mixture on its code.

python launch.py --config=configs/gmm.py
python launch.py --config=configs/gmm.py:digits
"""

from ml_collections import ConfigDict


def get_config(variant: str = 'fashion_mnist') -> ConfigDict:
  config = ConfigDict()
  config.experiment = 'gmm'
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
  config.gmm = ConfigDict(
    {
      'num_components': 10,
      'covariance': 'full',
      'num_restarts': 3,
      'init': 'k-means',
      'max_steps': 200,
      'tol': 1e-3,
      'reg': 1e-2,
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
          'ari': 0.4095,
          'cluster_purity': (
            *(0.6305, 0.7890, 0.6143, 0.3684, 0.5356),
            *(0.2612, 0.4609, 0.7583, 0.4082, 0.8404),
          ),
        },
        'test': {
          'ari': 0.4044,
          'cluster_purity': (
            *(0.6094, 0.7731, 0.6182, 0.3771, 0.5472),
            *(0.2676, 0.4700, 0.7663, 0.3977, 0.8253),
          ),
        },
      }
    )
  else:
    raise ValueError(
      f'the variant is {variant!r}: it must be fashion_mnist or digits'
    )
  return config

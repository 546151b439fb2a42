"""How many clusters? Five criteria over a range of numbers, without labels.

python launch.py --config=configs/sweep.py
python launch.py --config=configs/sweep.py:digits
python launch.py --config=configs/sweep.py --config.encode=False
"""

from ml_collections import ConfigDict


def get_config(variant: str = 'fashion_mnist') -> ConfigDict:
  config = ConfigDict()
  config.experiment = 'sweep'
  config.seed = 0
  config.data = ConfigDict(
    {'name': variant, 'dir': '', 'raw_dir': '', 'size': ()}
  )
  config.encode = True  # by an autoencoder; False for pixels
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
  config.sweep = ConfigDict(
    {
      'num_clusters': (2, 4, 6, 8, 9, 10, 11, 12, 14, 16, 20),
      'num_restarts': 10,
      'covariance': 'full',
      'reg': 1e-2,
    }
  )
  config.tensorboard = False
  if variant == 'digits':
    config.autoencoder.features = (16, 8)
    config.training.num_epochs = 100
    config.training.batch_size = 64
  elif variant != 'fashion_mnist':
    raise ValueError(
      f'the variant is {variant!r}: it must be fashion_mnist or digits'
    )
  return config

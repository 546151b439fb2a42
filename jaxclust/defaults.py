"""Default values of configs, each in one place; it imports no JAX."""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

# Options of a training, see `training`.
TRAINING = {
  'num_epochs': 50,
  'batch_size': 256,
  # Batches of an epoch at least: few images make smaller batches, and as many
  # more epochs; 0: both are as they stand.
  'min_batches': 60,
  'optimizer': 'adam',  # or 'sgd', with momentum
  'learning_rate': 1e-3,
  'schedule': 'constant',  # or 'cosine', down to 0
  'warmup_epochs': 0.0,
  'clip_norm': 0.0,  # maximum norm of a gradient; 0: any
  'momentum': 0.9,  # what past gradients weigh; Adam's first beta
  'weight_decay': 0.0,  # times the parameters, added to their gradient
  # Views of an image, see `data.augment`:
  'crop': 1.0,  # least share of the area that a crop keeps
  'stretch': 1.0,  # largest change of a crop's width / height
  'flip': 0.0,  # probability that left and right are swapped
  'extra_crop': 1.0,  # the same in views after the second, at most `crop`
  'max_shift': 0.0,  # pixels
  'max_rotation': 0.0,  # degrees
  'blur': 0.0,  # largest standard deviation, pixels
  'contrast': 0.0,  # largest relative change
  'brightness': 0.0,  # largest relative change
  'pattern': 0.0,  # largest depth of a random pattern on the image
  'erase': 0.0,  # largest share of the area that is erased
  'noise': 0.0,  # standard deviation of noise to be removed
  'patience': 0,  # epochs without a lower validation loss; 0: make all
  'holdout': 0.1,  # share of images that validate, if there is patience
  'dtype': 'float32',  # or 'bfloat16', of activations
  'placement': 'auto',  # of images: 'device', or 'host' to stream them
}

# Data sets that every config has a variant for.
VARIANTS = ('fashion_mnist', 'mnist', 'digits')


def base(experiment: str, variant: str) -> ConfigDict:
  """Parts of every experiment: its name in `experiments`, seed, data.

  Raises:
    ValueError: for a variant that is not among `VARIANTS`.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f'the variant is {variant!r}: it must be one of {", ".join(VARIANTS)}'
    )
  config = ConfigDict()
  config.experiment = experiment
  config.seed = 0
  config.data = ConfigDict(
    {
      'name': variant,
      'dir': '',
      'raw_dir': '',
      'size': (),
      'skip_bad': False,  # leave out pictures of a folder that cannot be used
    }
  )
  config.tensorboard = False
  return config


def pipeline(
  variant: str, stages: tuple[str, ...], clusterer: str
) -> ConfigDict:
  """From images to clusters: stages are methods of `methods.METHODS`, one after
  another; the clusterer is one of `ALGORITHMS`, or '' if the last stage assigns
  images itself."""
  config = base('cluster', variant)
  config.num_seeds = 1  # runs, with seeds from there on
  config.stages = stages
  config.clusterer = clusterer
  config.embedding = 'pca'  # of the map on the page; or 'tsne' beside it
  config.reference = ConfigDict()  # published scores
  if stages:
    represent(config, variant)
  return config


def several(
  experiment: str, variant: str, folder: pathlib.Path, runs: dict[str, tuple]
) -> ConfigDict:
  """Several runs on the same images, of five seeds each unless changed.

  Args:
    experiment: of `experiments.EXPERIMENTS`.
    variant: of `VARIANTS`.
    folder: of the configs.
    runs: name -> the name of a config, and what is changed of it.
  """
  config = base(experiment, variant)
  config.num_seeds = 5
  config.runs = ConfigDict()
  for name, (file, changes) in runs.items():
    own = of_file(folder / f'{file}.py', variant)
    own.update(changes)
    own.data = {'size': own.data.size}  # (): that of all
    for shared in ('seed', 'num_seeds', 'tensorboard'):
      del own[shared]
    config.runs[name] = own
  return config


def of_file(path: pathlib.Path, variant: str) -> ConfigDict:
  """The config of another file."""
  return runpy.run_path(str(path))['get_config'](variant)


def represent(config: ConfigDict, variant: str) -> None:
  """Adds a network and its training to a config."""
  config.network = ConfigDict({'name': 'conv', 'features': ()})  # (): its own
  config.training = ConfigDict(TRAINING)
  config.standardize = False  # divide each number of the code by its spread
  if variant == 'digits':
    config.network.features = (16, 8)
    config.training.num_epochs = 100
    config.training.batch_size = 64
    config.training.min_batches = 0


def kmeans(**options: Any) -> ConfigDict:
  """Options of k-means."""
  return ConfigDict(
    {
      'num_clusters': 10,
      'num_restarts': 10,
      'init': 'k-means++',
      'metric': 'euclidean',  # or 'cosine'
      'max_steps': 300,
      'tol': 1e-4,
    }
    | options
  )

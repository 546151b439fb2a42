"""Small runs of the configs, which tests of several modules share."""

import csv
import json
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

import launch

ROOT = pathlib.Path(__file__).parent.parent
_EPOCHS = '--config.training.num_epochs=2'
_NETWORK = ('--config.network.name=mlp', '--config.network.features=(16, 5)')

# Config -> flags that make its run short.
SMALL = {
  'kmeans': ['--config.kmeans.num_restarts=2'],
  'ae_kmeans': [
    _EPOCHS,
    '--config.kmeans.num_restarts=2',
    '--config.training.optimizer=sgd',
    *_NETWORK,
  ],
  'gmm': [_EPOCHS, '--config.gmm.num_restarts=1', *_NETWORK],
  'dec': [
    _EPOCHS,
    *_NETWORK,
    '--config.dec.num_epochs=2',
    '--config.dec.num_restarts=2',
  ],
  'prototypes': [
    _EPOCHS,
    '--config.training.warmup_epochs=0.5',
    '--config.network.features=(4, 6)',
    '--config.prototypes.num_heads=2',
    '--config.prototypes.num_prototypes=20',
  ],
  'committee': [
    '--config.num_seeds=2',
    '--config.spread.num_neighbors=5',
    "--config.members=('outlines', 'patterns')",
    *(
      f'--config.runs.{name}.{option}'
      for name in ('outlines', 'patterns')
      for option in (
        'training.num_epochs=2',
        'training.warmup_epochs=0.5',
        'network.features=(4, 6)',
        'prototypes.num_heads=2',
        'prototypes.num_prototypes=20',
      )
    ),
  ],
  'dcn': [],  # these three run in the leaderboard
  'n2d': [],
  'vade': [],
  'predict': ['--config.export=True'],
  'leaderboard': [
    '--config.num_seeds=1',
    "--config.methods=('dcn', 'vade', 'n2d')",
    '--config.runs.n2d.training.num_epochs=2',
    '--config.runs.n2d.network.features=(16, 5)',
    '--config.runs.n2d.gmm.num_restarts=1',
    *(
      f'--config.runs.{name}.{option}'
      for name in ('dcn', 'vade')
      for option in (
        'training.num_epochs=2',
        f'{name}.num_epochs=2',
        f'{name}.num_restarts=1',
        'network.features=(16, 5)',
      )
    ),
  ],
  'sweep': [
    _EPOCHS,
    '--config.training.warmup_epochs=0.5',
    '--config.network.features=(4, 6)',
    '--config.sweep.num_clusters=(1, 3, 2)',
    '--config.sweep.num_restarts=2',
  ],
  'benchmark': [
    '--config.benchmark.autoencoder.features=(4, 2)',
    '--config.benchmark.kmeans.many_clusters=12',
    '--config.benchmark.kmeans.many_steps=5',
    '--config.benchmark.kmeans.num_restarts=2',
    "--config.benchmark.mixtures.covariances=('tied',)",
    '--config.benchmark.mixtures.dims=(8,)',
    '--config.benchmark.mixtures.em_steps=5',
    '--config.benchmark.rounds=2',
    '--config.benchmark.limit_size=64',
  ],
}
PIPELINES = ('kmeans', 'ae_kmeans', 'gmm', 'dec', 'prototypes')


class Finished(NamedTuple):
  """A run that ended well."""

  path: pathlib.Path
  out: str  # what it has printed


def run(name, path, *flags):
  """Runs the digits variant of a config; returns the status."""
  config = f'--config={ROOT}/configs/{name}.py:digits'
  return launch.main(['launch.py', config, f'--workdir={path}', *flags])


def read(path, name='summary.json'):
  return json.loads((path / name).read_text())


def table(path):
  """The rows of clusters.csv."""
  with open(path / 'clusters.csv', newline='') as file:
    return list(csv.DictReader(file))


def draw_npz(path, **arrays):
  """60 images of noise, for `config.data.name`."""
  images = np.random.default_rng(0).integers(0, 256, (60, 6, 7), np.uint8)
  np.savez(path, **{'images': images} | arrays)
  return f'--config.data.name={path}'


def draw_folder(path, colors, sizes):
  """PNGs that are red, green, blue or grey, in a sub-folder for each colour,
  of sizes that take turns."""
  rng = np.random.default_rng(0)
  for color in colors:
    (path / color).mkdir(parents=True)
    for row in range(8):
      height, width = sizes[row % len(sizes)]
      image = rng.integers(0, 60, (height, width, 3), np.uint8)
      if color == 'grey':
        image = image[..., 0]
      else:
        image[..., ('red', 'green', 'blue').index(color)] += 180
      Image.fromarray(image).save(path / color / f'{row}.png')
  return path

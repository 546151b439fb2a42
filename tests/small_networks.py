"""A small network, its images and its training, which several modules share.

All trainings of a module have the same shapes if they can, so that few programs
are compiled.
"""

import jax
import numpy as np
import pytest

from jaxclust import checkpoints, networks, phases, plans, training
from jaxclust.defaults import TRAINING
from jaxclust.methods import METHODS

NETWORK = networks.build((8, 8, 1), name='mlp', features=(16, 4))
METHOD = METHODS['autoencoder'](NETWORK)
OPTIONS = TRAINING | {'num_epochs': 3, 'batch_size': 16, 'learning_rate': 1e-2}


def draw_images(num_images, seed=0):
  """Images `[N, 8, 8, 1]` uint8 of random blocks of 2x2 pixels."""
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (num_images, 4, 4, 1), np.uint8)
  return blocks.repeat(2, 1).repeat(2, 2)


IMAGES, TEST_IMAGES = draw_images(100), draw_images(40, 1)


def plan_of(
  images=IMAGES,
  test_images=TEST_IMAGES,
  seeds=(0,),
  build=METHODS['autoencoder'],
  network=NETWORK,
  **options,
):
  keys = phases.draw_keys(seeds)
  return plans.plan(
    build, network, images, test_images, keys, OPTIONS | options
  )


def train(plan, course=None):
  """Trains to the end, from the first step unless a course is given.

  Returns:
    The last course, and the losses of each epoch by name.
  """
  if course is None:
    course = training.start(plan, training.blank(plan))
  losses = []
  for now in training.run(plan, course):
    course = now.course
    if now.losses is not None:
      losses.append({name: a.tolist() for name, a in now.losses.items()})
  return course, losses


def train_until(stop, path, phase, plan, monkeypatch):
  """Trains, saves after each call, and dies when a step has been saved."""
  save = checkpoints.save

  def dying(path, phase, step, state):
    save(path, phase, step, state)
    if step == stop:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
    patch.setattr(checkpoints, 'save', dying)
    with pytest.raises(KeyboardInterrupt):
      phases.train(path, phase, plan, [0])


def run_of(tree, run=0):
  """The part of one run in a pytree of `[R, ...]`."""
  return jax.tree.map(lambda a: a[run], tree)

"""What a training does, from its options.

Axes: R runs, N images, S steps, B batch, H height, W width, C channels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxclust import checks, processes, steps
from jaxclust.data import augment, batches
from jaxclust.errors import InputError
from jaxclust.methods import Method

# Operations of a device call that last about a second.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 1e11, 1e13

# Where images are few: least images of a batch, and batches of an epoch.
_LEAST_BATCH, _LEAST_BATCHES = 8, 8

# Maximum bytes of images per device call.
_CALL_BYTES = 2**28

# Dtype of activations; parameters and losses are float32.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# Numbers that the key of a training is folded with, one for each purpose.
INIT, ORDER, AUGMENTATION, HELD_OUT, START, FINISH = 0, 1, 3, 4, 5, 6


class Plan(NamedTuple):
  """What all epochs of a training have in common."""

  method: Method
  train: Method  # the same with activations of the wanted dtype
  source: jax.Array | np.ndarray  # [N, H, W, C]
  images: jax.Array | np.ndarray  # the same, on all devices of the mesh
  numbers: np.ndarray  # int32, of the images to train on
  validation: jax.Array | np.ndarray | None  # images of the validation loss
  keys: jax.Array  # [R]
  orders: jax.Array  # [R] keys of the orders of the epochs
  rates: np.ndarray  # [S] learning rates of all steps
  mesh: Mesh  # the devices that share each batch
  drawn: dict  # keywords of `train_steps` that are the same for all
  steps_per_epoch: int
  steps_per_call: int
  options: dict


def for_few(num_images: int, options: dict) -> dict:
  """Options of a training that N images are too few for, with other values:
  batches are smaller, and epochs so many more as theirs have fewer batches than
  `min_batches`."""
  least = options.get('min_batches', 0)  # older runs lack it
  size, num_epochs = options['batch_size'], options['num_epochs']
  checks.check_count('min_batches', least, low=0)
  checks.check_count('batch_size', size)
  checks.check_count('num_epochs', num_epochs)
  if num_images // size >= least:
    return {}
  size = min(size, max(_LEAST_BATCH, num_images // _LEAST_BATCHES))
  size = min(size, num_images)
  longer = max(1, least / (num_images // size))
  return {
    'batch_size': size,
    'num_epochs': math.ceil(num_epochs * longer),
    'warmup_epochs': options['warmup_epochs'] * longer,
  }


def check_options(num_images: int, method: Method, options: dict) -> None:
  """Checks the options of a training.

  Args:
    num_images: N.
    method: that is trained.
    options: as `defaults.TRAINING`.

  Raises:
    InputError: if they are out of range.
  """
  checks.check_count('num_epochs', options['num_epochs'])
  checks.check_count('batch_size', options['batch_size'])
  checks.check_count('patience', options['patience'], low=0)
  for name in ('learning_rate', 'clip_norm', 'weight_decay'):
    checks.check_number(name, options[name])
  checks.check_number(
    'warmup_epochs', options['warmup_epochs'], high=options['num_epochs']
  )
  checks.check_number('momentum', options['momentum'], high=0.999)
  checks.check_number('holdout', options['holdout'], high=0.5)
  for name, known in (
    ('schedule', steps.SCHEDULES),
    ('dtype', DTYPES),
    ('optimizer', steps.OPTIMIZERS),
    ('placement', batches.PLACEMENTS),
  ):
    checks.check_choice(name, options[name], known)
  augmentation_of(options)
  if options['patience'] and int(options['holdout'] * num_images) < 1:
    raise InputError(
      f'holdout is {options["holdout"]}: of {num_images} images that leaves '
      'none to validate on; hold out more, or set patience to 0'
    )
  if options['patience'] and not validates(method):
    raise InputError(
      f'patience is {options["patience"]}: this method has no validation loss; '
      'set patience to 0'
    )
  if method.couples and options['batch_size'] > num_images:
    raise InputError(
      f'batch_size is {options["batch_size"]}, but there are {num_images} '
      'images, and this method leaves out what does not fill a batch: set it '
      'to at most as many'
    )
  method.check(num_images)


def validates(method: Method) -> bool:
  """Whether the errors of a method's reconstructions tell how well it does."""
  return method.decode is not None and method.targets is None


def augmentation_of(options: dict) -> augment.Augmentation:
  """What a training draws of each image."""
  return augment.from_options(**{n: options[n] for n in augment.OPTIONS})


def plan(
  build: Callable,
  network: Any,
  images: jax.Array | np.ndarray,
  test_images: jax.Array | np.ndarray | None,
  keys: jax.Array,
  options: dict,
) -> Plan:
  """Prepares a training.

  Args:
    build: `network -> Method`.
    network: of `networks`.
    images: `[N, H, W, C]` on the device, or on the host to be streamed.
    test_images: of the validation loss, unless a part of images is held out.
    keys: `[R]`, a random key of each run.
    options: as `defaults.TRAINING`.
  """
  method = build(network)
  batch_size, patience = options['batch_size'], options['patience']
  share = options['holdout'] if patience else 0
  key = jax.random.fold_in(keys[0], HELD_OUT)
  held = batches.draw_held_out(key, len(images), share)
  numbers = np.flatnonzero(~held).astype(np.int32)
  num_steps = batches.steps_per_epoch(
    len(numbers), batch_size, only_whole=method.couples
  )
  mesh = steps.make_mesh(method.operations, batch_size, network.uses_all_cores)
  drawn = {n: options[n] for n in ('clip_norm', 'momentum', 'weight_decay')}
  drawn |= {'augmentation': augmentation_of(options)}
  drawn = jax.tree.map(np.float32, drawn) | {
    'keys': fold_in(keys, AUGMENTATION)
  }
  operations = 3 * len(keys) * batch_size * method.operations
  bytes_per_step = len(keys) * batch_size * images[0].nbytes
  most = min(steps_per_call(operations), max(1, _CALL_BYTES // bytes_per_step))
  if isinstance(images, jax.Array):
    validation = images[jnp.asarray(np.flatnonzero(held))]
    shared = processes.replicate(mesh, images)
  else:
    validation, shared = images[held], images
  return Plan(
    method=method,
    train=build(network.clone(dtype=DTYPES[options['dtype']])),
    source=images,
    images=shared,
    numbers=numbers,
    validation=validation if patience else test_images,
    keys=keys,
    orders=fold_in(keys, ORDER),
    rates=steps.learning_rates(num_steps, options),
    mesh=mesh,
    drawn=processes.replicate(mesh, drawn),
    steps_per_epoch=num_steps,
    steps_per_call=_divide(num_steps, most),
    options=options,
  )


def steps_per_call(operations: float) -> int:
  """Steps of so many operations that take about a second."""
  on_cpu = jax.default_backend() == 'cpu'
  budget = _CPU_OPERATIONS if on_cpu else _ACCELERATOR_OPERATIONS
  return max(1, int(budget // operations))


def _divide(num_steps, most):
  """Steps of a call, at most so many, of which all calls of an epoch make the
  same if they can: another number of steps is another program."""
  least = -(-num_steps // most)
  calls = next(
    (n for n in range(least, 2 * least) if num_steps % n == 0), least
  )
  return -(-num_steps // calls)


fold_in = jax.vmap(jax.random.fold_in, (0, None))

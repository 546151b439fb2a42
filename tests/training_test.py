"""The loop of a training: what it yields however it is run."""

import logging
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import (
  IMAGES,
  METHOD,
  NETWORK,
  OPTIONS,
  TEST_IMAGES,
  plan_of,
  run_of,
  train,
)

from jaxclust import encoding, networks, plans, steps, training
from jaxclust.data import batches
from jaxclust.errors import InputError
from jaxclust.methods import METHODS

pytestmark = pytest.mark.usefixtures('light_compiler')


def on_device(*images):
  return batches.place(images, 'device')


@pytest.mark.slow
def test_streamed_and_resident_images_train_alike(monkeypatch):
  monkeypatch.setattr(plans, '_CALL_BYTES', 2 * 16 * 64)  # two steps of seven
  options = {'noise': 0.1, 'max_shift': 1.0, 'schedule': 'cosine'}
  streamed, losses = train(plan_of(**options))
  resident, same = train(plan_of(*on_device(IMAGES, TEST_IMAGES), **options))
  assert losses == same
  chex.assert_trees_all_equal(streamed, resident)


@pytest.mark.parametrize('placement', ['device', 'host'])
def test_nothing_is_sent_unseen_within_an_epoch(placement, monkeypatch):
  """With everything on, all that goes to or from a device is asked for."""

  def guarded_epoch(*args, epoch=training._train_epoch):
    with jax.transfer_guard('disallow'):
      yield from epoch(*args)

  def guarded_losses(*args, losses=training._losses):
    with jax.transfer_guard('disallow'):
      return losses(*args)

  monkeypatch.setattr(training, '_train_epoch', guarded_epoch)
  monkeypatch.setattr(training, '_losses', guarded_losses)
  monkeypatch.setattr(plans, '_CALL_BYTES', 2 * 16 * 64)
  images = batches.place([IMAGES, TEST_IMAGES], placement)
  options = {'clip_norm': 1.0, 'noise': 0.1, 'max_shift': 1.0}
  plan = plan_of(*images, num_epochs=2, patience=2, **options)
  _, losses = train(plan)
  assert len(losses) == 2


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_alone():
  together, losses = train(plan_of(seeds=(3, 4)))
  for run, seed in enumerate((3, 4)):
    alone, own = train(plan_of(seeds=(seed,)))
    for epoch, single in zip(losses, own, strict=True):
      assert {name: [a[run]] for name, a in epoch.items()} == single
    chex.assert_trees_all_equal(
      run_of(alone.state.params), run_of(together.state.params, run)
    )
  assert len(set(losses[-1]['train_loss'])) == 2


@pytest.mark.slow
def test_devices_that_share_batches_train_alike(monkeypatch):
  options = {'batch_size': 64, 'patience': 2}
  alone, losses = train(plan_of(**options))
  monkeypatch.setattr(networks.DenseAutoencoder, 'uses_all_cores', False)
  monkeypatch.setattr(steps, '_CPU_SHARE', 1)
  plan = plan_of(**options)
  assert plan.mesh.size == 2
  shared, same = train(plan)
  chex.assert_trees_all_close(
    alone.state.params, shared.state.params, atol=1e-5
  )
  chex.assert_trees_all_close(losses, same, rtol=1e-4)


def test_calls_of_other_lengths_are_the_same_training(monkeypatch):
  whole, losses = train(plan_of())
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)
  parts, same = train(plan_of())
  chex.assert_trees_all_close(whole.state.params, parts.state.params, atol=1e-6)
  chex.assert_trees_all_close(losses, same, rtol=1e-5)


def test_another_rate_or_number_of_epochs_compiles_nothing(caplog):
  train(plan_of(num_epochs=2))
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    train(plan_of(num_epochs=4, learning_rate=1e-4, schedule='cosine'))
    assert not any('XLA compilation' in text for text in caplog.messages)
    jax.jit(lambda x: x + 3)(1)
    assert any('XLA compilation' in text for text in caplog.messages)


def test_patience_ends_a_training_and_gives_the_best(monkeypatch):
  """Each seed by the course of its own loss, as if it were alone."""
  course = iter(np.array([[5, 9], [4, 8], [4.5, 7], [6, 6], [1, 5], [1, 5.5]]))
  waiting, seen = [], []

  def judge(method, params, images, batch_size):
    assert len(images) == 10  # a tenth, held out
    if not waiting:
      waiting.extend(next(course))
      seen.append([])
    seen[-1].append(jax.tree.map(jnp.copy, params))
    return jnp.full(10, waiting.pop(0))

  monkeypatch.setattr(encoding, 'errors', judge)
  plan = plan_of(seeds=(0, 1), num_epochs=6, patience=2)
  active = []
  for now in training.run(plan, training.blank(plan)):
    last = now.course
    active.append(now.active.tolist())
  assert active == [[True, True]] * 4 + [[False, True]] * 2
  assert training.final_epochs(plan, last) == [2, 5]
  assert last.best.loss.tolist() == [4, 5]
  params = training.final_params(plan, last)
  for run, epoch in enumerate((2, 5)):
    chex.assert_trees_all_equal(run_of(params, run), seen[epoch - 1][run])


@pytest.mark.slow
def test_images_held_out_are_not_trained_on():
  images = IMAGES.copy()
  options = {'patience': 2, 'num_epochs': 2}
  plan = plan_of(images, **options)
  plain, losses = train(plan)
  held = np.setdiff1d(np.arange(100), plan.numbers)
  assert len(held) == 10
  images[held] = 255
  other, changed = train(plan_of(images, **options))
  chex.assert_trees_all_equal(plain.state.params, other.state.params)
  assert losses != changed


def test_without_patience_the_best_are_kept_beside_the_last():
  plan = plan_of(learning_rate=0.3, num_epochs=4)
  course, losses = train(plan)
  found = np.array([epoch['train_loss'][0] for epoch in losses])
  assert course.best.epoch[0] == 1 + found.argmin()
  assert course.best.loss[0] == np.float32(found.min())
  final = training.final_params(plan, course)
  chex.assert_trees_all_equal(final, course.state.params)
  assert training.final_epochs(plan, course) == [4]


def test_the_best_parameters_are_those_of_the_lowest_loss():
  best = training.no_best({'a': jnp.zeros((2, 3))})
  course = [
    # epoch, losses of two runs
    (1, [3.0, 5.0]),
    (2, [2.0, 4.0]),
    (3, [2.5, 4.5]),
    (4, [2.5, 4.5]),
    (5, [1.0, 3.0]),
  ]
  for epoch, losses in course:
    params = {'a': jnp.full((2, 3), float(epoch))}
    best = training.keep_best(best, params, jnp.array(losses), epoch, 3)
  np.testing.assert_array_equal(best.epoch, [5, 5])
  np.testing.assert_array_equal(best.params['a'][:, 0], [5, 5])
  np.testing.assert_array_equal(best.loss, [1, 3])


def test_a_run_without_patience_left_takes_no_better_parameters():
  best = training.no_best({'a': jnp.zeros((2, 3))})
  for epoch, losses in enumerate([[1, 9], [2, 8], [2, 7], [0.5, 6]], 1):
    params = {'a': jnp.full((2, 3), float(epoch))}
    losses = jnp.array(losses, jnp.float32)
    best = training.keep_best(best, params, losses, epoch, 2)
  np.testing.assert_array_equal(best.epoch, [1, 4])
  np.testing.assert_array_equal(best.loss, [1, 6])


def test_a_nan_is_no_best():
  best = training.no_best({'a': jnp.zeros((1, 3))})
  nan = jnp.array([jnp.nan])
  best = training.keep_best(best, {'a': jnp.ones((1, 3))}, nan, 1, 2)
  assert best.epoch == 0


def test_parameters_that_are_not_finite_are_found():
  params = {'a': jnp.zeros((3, 2)), 'b': jnp.zeros((3, 2, 2))}
  params['b'] = params['b'].at[1, 0, 0].set(jnp.inf)
  found = training.is_finite(params)
  np.testing.assert_array_equal(found, [True, False, True])


@pytest.mark.slow
@pytest.mark.parametrize(
  ('num_images', 'batch_size'), [(1, 16), (5, 16), (21, 16), (3, 1)]
)
def test_an_epoch_weighs_all_images_alike(num_images, batch_size):
  """Without learning, the loss of an epoch is that of its images."""
  images = IMAGES[:num_images]
  options = {'batch_size': batch_size, 'learning_rate': 0.0, 'num_epochs': 1}
  _, (losses,) = train(plan_of(images, images, **options))
  np.testing.assert_allclose(
    losses['train_loss'], losses['val_loss'], rtol=1e-5
  )
  assert losses['train_loss'][0] > 0


@pytest.mark.parametrize(
  ('num_steps', 'most', 'found'),
  [(235, 88, 47), (22, 88, 22), (7, 3, 3), (12, 5, 4), (5, 1, 1)],
)
def test_calls_of_an_epoch_are_of_one_length_if_they_can(
  num_steps, most, found
):
  assert plans._divide(num_steps, most) == found


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('num_epochs', 0),
    ('batch_size', 2.5),
    ('learning_rate', -1.0),
    ('schedule', 'linear'),
    ('warmup_epochs', 3.5),
    ('clip_norm', -1.0),
    ('noise', -1.0),
    ('patience', -1),
    ('holdout', 0.6),
    ('dtype', 'float16'),
    ('optimizer', 'lion'),
    ('placement', 'disk'),
  ],
)
def test_options_that_cannot_be_used_are_named(name, value):
  with pytest.raises(InputError, match=f'{name} is {value!r}'):
    plans.check_options(100, METHOD, OPTIONS | {name: value})


def test_patience_needs_an_image_to_judge_by():
  options = OPTIONS | {'patience': 1}
  plans.check_options(10, METHOD, options)
  with pytest.raises(InputError, match=r'holdout is 0.1: of 9 images'):
    plans.check_options(9, METHOD, options)
  plans.check_options(9, METHOD, OPTIONS)


def test_patience_needs_a_loss_that_is_the_same_for_all_epochs():
  method = METHODS['dec'](NETWORK, num_clusters=3)
  plans.check_options(100, method, OPTIONS)
  with pytest.raises(InputError, match=r'patience is 1: .* set patience to 0'):
    plans.check_options(100, method, OPTIONS | {'patience': 1})


LARGE = """
import resource
import jax
import numpy as np
from small_networks import plan_of, run_of, train
from jaxclust import encoding, networks, training

jax.config.update('jax_disable_most_optimizations', True)  # LLVM's
images = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8)
network = networks.build((64, 64, 3), features=(16, 8))
plan = plan_of(
  images, images[:100], network=network, batch_size=256, num_epochs=1,
  noise=0.1, max_shift=2.0, max_rotation=5.0,
)
course, _ = train(plan)
params = run_of(training.final_params(plan, course))
assert encoding.embed(plan.method, params, images, 256).shape == (300, 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='tells of memory in KiB')
def test_images_of_64x64x3_train_within_8_gib():
  command = [sys.executable, '-c', LARGE]
  environment = os.environ | {'PYTHONPATH': os.path.dirname(__file__)}
  done = subprocess.run(
    command, check=True, capture_output=True, text=True, env=environment
  )
  assert 2**28 < int(done.stdout.split()[-1]) < 8 * 2**30

"""The host's loops: what a training yields however it is run."""

import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import (
  checkpoints,
  fitting,
  signals,
  streaming,
  training,
  workdir,
)
from jaxclust.autoencoder import Autoencoder
from jaxclust.fitting import RunError
from jaxclust.numerics import InputError

MODEL = Autoencoder((8, 8, 1), (4, 2))
OPTIONS = {
  'num_epochs': 3,
  'batch_size': 16,
  'learning_rate': 1e-2,
  'schedule': 'constant',
  'warmup_epochs': 0.0,
  'clip_norm': 0.0,
  'noise': 0.0,
  'max_shift': 0.0,
  'max_rotation': 0.0,
  'patience': 0,
  'holdout': 0.1,
  'dtype': 'float32',
  'placement': 'auto',
}


def draw_images(num_images, seed=0):
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (num_images, 4, 4, 1), np.uint8)
  return blocks.repeat(2, 1).repeat(2, 2)


IMAGES, TEST_IMAGES = draw_images(100), draw_images(40, 1)


def train(path, images=IMAGES, test_images=TEST_IMAGES, seeds=(0,), **options):
  path.mkdir(exist_ok=True)
  options = OPTIONS | options
  return fitting.train(path, MODEL, images, test_images, seeds, options)


def losses(path, seed=0):
  return [
    (r['epoch'], r['train_loss'], r.get('val_loss'))
    for r in workdir.read_log(path, phase='autoencoder', seed=seed)
  ]


@pytest.mark.slow
def test_streamed_and_resident_images_train_alike(tmp_path, monkeypatch):
  monkeypatch.setattr(fitting, '_CALL_BYTES', 2 * 16 * 64)  # two steps of seven
  options = {'noise': 0.1, 'max_shift': 1.0, 'schedule': 'cosine'}
  streamed = train(tmp_path / 'host', **options)
  there = [jnp.asarray(images) for images in (IMAGES, TEST_IMAGES)]
  resident = train(tmp_path / 'device', *there, **options)
  assert losses(tmp_path / 'host') == losses(tmp_path / 'device')
  chex.assert_trees_all_equal(streamed.params, resident.params)
  own = jax.tree.map(lambda a: a[0], streamed.params)
  encoder = fitting.Encoder(MODEL, own, jnp.ones((1, 1)), 16)
  np.testing.assert_array_equal(
    encoder.encode(IMAGES), encoder.encode(there[0])
  )


@pytest.mark.parametrize('placement', ['device', 'host'])
def test_nothing_is_sent_unseen_within_an_epoch(
  placement, tmp_path, monkeypatch
):
  """With everything on, all that goes to or from a device is asked for."""

  def guarded(fn):
    def call(*args):
      with jax.transfer_guard('disallow'):
        return fn(*args)

    return call

  for name in ('_train_epoch', '_losses'):
    monkeypatch.setattr(fitting, name, guarded(getattr(fitting, name)))
  monkeypatch.setattr(fitting, '_CALL_BYTES', 2 * 16 * 64)
  images = streaming.place([IMAGES, TEST_IMAGES], placement)
  options = {'clip_norm': 1.0, 'noise': 0.1, 'max_shift': 1.0}
  trained = train(tmp_path, *images, num_epochs=2, patience=2, **options)
  assert trained.records[0]['epoch'] > 0


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_alone(tmp_path):
  together = train(tmp_path / 'all', seeds=(3, 4))
  for run, seed in enumerate((3, 4)):
    path = tmp_path / str(seed)
    alone = train(path, seeds=(seed,))
    assert losses(tmp_path / 'all', seed) == losses(path, seed)
    for tree in (together, alone):
      assert tree.records[run if tree is together else 0]['seed'] == seed
    chex.assert_trees_all_equal(
      jax.tree.map(lambda a: a[0], alone.params),
      jax.tree.map(lambda a, run=run: a[run], together.params),
    )
  assert losses(tmp_path / '3', 3) != losses(tmp_path / '4', 4)


@pytest.mark.slow
def test_a_training_in_memory_is_the_same(tmp_path, monkeypatch):
  monkeypatch.setattr(training, '_CPU_SHARE', 1)
  monkeypatch.setattr(training, '_PART', 8)
  saved = train(tmp_path, test_images=None, seeds=(3, 4))
  names = ('num_epochs', 'batch_size', 'learning_rate')
  params, found = training.fit(
    jnp.stack([jax.random.key(3), jax.random.key(4)]),
    jnp.asarray(IMAGES),
    model=MODEL,
    **{name: OPTIONS[name] for name in names},
  )
  chex.assert_trees_all_equal(params, saved.params)
  logged = [losses(tmp_path, seed) for seed in (3, 4)]
  np.testing.assert_array_equal(found.T, np.array(logged, float)[..., 1])


@pytest.mark.slow
def test_devices_that_share_batches_train_alike(tmp_path, monkeypatch):
  options = {'batch_size': 64, 'noise': 0.0, 'patience': 2}
  monkeypatch.setattr(training, '_CPU_SHARE', np.inf)
  alone = train(tmp_path / 'one', **options)
  monkeypatch.setattr(training, '_CPU_SHARE', 1)
  shared = train(tmp_path / 'two', **options)
  assert training.make_mesh(MODEL, 64).size == 2
  chex.assert_trees_all_close(alone.params, shared.params, atol=1e-5)
  np.testing.assert_allclose(
    losses(tmp_path / 'one'), losses(tmp_path / 'two'), rtol=1e-4
  )


def test_calls_of_other_lengths_are_the_same_training(tmp_path, monkeypatch):
  whole = train(tmp_path / 'whole')
  monkeypatch.setattr(fitting, '_CPU_OPERATIONS', 1)
  parts = train(tmp_path / 'parts')
  chex.assert_trees_all_close(whole.params, parts.params, atol=1e-6)
  np.testing.assert_allclose(
    losses(tmp_path / 'whole'), losses(tmp_path / 'parts'), rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize('share', [1, np.inf])
def test_a_training_stopped_within_an_epoch_goes_on(
  share, tmp_path, monkeypatch
):
  monkeypatch.setattr(training, '_CPU_SHARE', share)
  monkeypatch.setattr(training, '_PART', 8)
  monkeypatch.setattr(fitting, '_CPU_OPERATIONS', 1)  # seven calls an epoch
  options = {'seeds': (0, 5), 'patience': 3, 'noise': 0.1}
  whole = train(tmp_path / 'whole', **options)
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  save = checkpoints.save
  for stop in (4, 6, 11):

    def dying(path, phase, step, state, stop=stop):
      save(path, phase, step, state)
      if step >= stop:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints, 'save', dying)
      with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'stopped', **options)
  resumed = train(tmp_path / 'stopped', **options)
  chex.assert_trees_all_equal(whole.params, resumed.params)
  for seed in options['seeds']:
    found = losses(tmp_path / 'stopped', seed)
    assert found == losses(tmp_path / 'whole', seed)


def test_patience_ends_a_training_and_gives_the_best(tmp_path, monkeypatch):
  """Each seed by the course of its own loss, as if it were alone."""
  course = iter(np.array([[5, 9], [4, 8], [4.5, 7], [6, 6], [1, 5], [1, 5.5]]))
  seen = []

  def judge(params, images, **options):
    assert len(images) == 10  # a tenth, held out
    seen.append(jax.tree.map(jnp.copy, params))
    return jnp.asarray(10 * next(course))

  monkeypatch.setattr(training, 'sum_losses', judge)
  trained = train(tmp_path, seeds=(0, 1), num_epochs=6, patience=2)
  assert [epoch for epoch, *_ in losses(tmp_path, 0)] == [1, 2, 3, 4]
  assert [epoch for epoch, *_ in losses(tmp_path, 1)] == [1, 2, 3, 4, 5, 6]
  assert [record['epoch'] for record in trained.records] == [2, 5]
  assert [record['val_loss'] for record in trained.records] == [4, 5]
  for run, epoch in enumerate((2, 5)):
    chex.assert_trees_all_equal(
      jax.tree.map(lambda a, run=run: a[run], trained.params),
      jax.tree.map(lambda a, run=run: a[run], seen[epoch - 1]),
    )


@pytest.mark.slow
def test_images_held_out_are_not_trained_on(tmp_path):
  images = IMAGES.copy()
  options = {'patience': 2, 'num_epochs': 2}
  plain = train(tmp_path / 'plain', images, **options)
  images[training.held_out(100, 0.1)] = 255
  other = train(tmp_path / 'other', images, **options)
  chex.assert_trees_all_equal(plain.params, other.params)
  assert losses(tmp_path / 'plain') != losses(tmp_path / 'other')


@pytest.mark.slow
def test_without_patience_the_best_are_kept_beside_the_last(tmp_path):
  trained = train(tmp_path, learning_rate=0.3, num_epochs=4)
  epochs = np.array([train_loss for _, train_loss, _ in losses(tmp_path)])
  state = training.init(fitting.draw_keys([0], fitting.INIT), MODEL)
  course = fitting._Course(state, training.no_best(state.params))
  _, course = checkpoints.restore(tmp_path, 'autoencoder', course)
  assert course.best.epoch[0] == 1 + epochs.argmin()
  assert course.best.loss[0] == np.float32(epochs.min())
  chex.assert_trees_all_equal(trained.params, course.state.params)
  assert trained.records[0]['epoch'] == 4


@pytest.mark.parametrize('bad', ['loss', 'parameter'])
def test_what_is_not_finite_ends_a_training(bad, tmp_path, monkeypatch):
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  steps = training.train_steps

  def diverging(state, *args, **options):
    state = steps(state, *args, **options)
    if int(state.step[0]) < 14:
      return state
    if bad == 'loss':
      return state._replace(loss_sum=state.loss_sum.at[1].set(jnp.nan))
    nan = jax.tree.map(lambda a: a.at[1].set(jnp.nan), state.params)
    return state._replace(params=nan)

  monkeypatch.setattr(training, 'train_steps', diverging)
  with pytest.raises(RunError, match=r'epoch 2.*checkpoint of step 7 stands'):
    train(tmp_path, test_images=None, seeds=(0, 1))
  saved = tmp_path / 'checkpoints' / 'autoencoder'
  assert sorted(p.name for p in saved.iterdir()) == ['7', '7.json']


@pytest.mark.slow
def test_what_is_not_finite_within_an_epoch_is_not_saved(tmp_path, monkeypatch):
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(fitting, '_CPU_OPERATIONS', 1)  # a step a call
  steps = training.train_steps

  def diverging(state, *args, **options):
    state = steps(state, *args, **options)
    if int(state.step[0]) < 10:
      return state
    nan = jax.tree.map(lambda a: a.at[0].set(jnp.nan), state.params)
    return state._replace(params=nan)

  monkeypatch.setattr(training, 'train_steps', diverging)
  with pytest.raises(RunError, match=r'epoch 2.*checkpoint of step 9 stands'):
    train(tmp_path)
  saved = tmp_path / 'checkpoints' / 'autoencoder'
  steps = sorted(int(p.name) for p in saved.iterdir() if p.is_dir())
  assert steps == [8, 9]


def test_a_learning_rate_of_a_million_ends_a_training(tmp_path, monkeypatch):
  monkeypatch.setattr(fitting, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(fitting, '_CPU_OPERATIONS', 1)  # a step a call
  message = r'epoch 1: lower config.*learning_rate \(the checkpoint of step 1 '
  with pytest.raises(RunError, match=message):
    train(tmp_path, learning_rate=1e6)
  state = training.init(fitting.draw_keys([0], fitting.INIT), MODEL)
  course = fitting._Course(state, training.no_best(state.params))
  step, course = checkpoints.restore(tmp_path, 'autoencoder', course)
  assert step == 1
  chex.assert_tree_all_finite(course.state)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('num_images', 'batch_size'), [(1, 16), (5, 16), (21, 16), (3, 1)]
)
def test_an_epoch_weighs_all_images_alike(num_images, batch_size, tmp_path):
  """Without learning, the loss of an epoch is that of its images."""
  images = IMAGES[:num_images]
  options = {'batch_size': batch_size, 'learning_rate': 0.0, 'num_epochs': 1}
  train(tmp_path, images, images, **options)
  ((_, train_loss, val_loss),) = losses(tmp_path)
  np.testing.assert_allclose(train_loss, val_loss, rtol=1e-5)
  assert train_loss > 0


def test_a_signal_that_comes_while_it_looks_waits_for_the_next_save(
  tmp_path, monkeypatch
):
  ask = signals.is_requested

  def ask_just_before_it_comes():
    answer = ask()
    if not answer:
      signal.raise_signal(signal.SIGTERM)
    return answer

  def run():
    with fitting._Saver(tmp_path, 'gmm', 0) as saver:
      saver.save(1, state)
      saver.save(2, state)
      pytest.fail('it goes on')

  state = {'a': jnp.zeros(2)}
  monkeypatch.setattr(signals, 'is_requested', ask_just_before_it_comes)
  with pytest.raises(signals.Stopped), signals.listening():
    run()
  assert checkpoints.restore(tmp_path, 'gmm', state)[0] == 2


@pytest.mark.parametrize(
  ('num_steps', 'most', 'steps'),
  [(235, 88, 47), (22, 88, 22), (7, 3, 3), (12, 5, 4), (5, 1, 1)],
)
def test_calls_of_an_epoch_are_of_one_length_if_they_can(
  num_steps, most, steps
):
  assert fitting._divide(num_steps, most) == steps


@pytest.mark.parametrize(
  ('name', 'value'),
  [('placement', 'disk'), ('noise', -1.0), ('schedule', 'step')],
)
def test_options_that_cannot_be_used_are_named(name, value):
  with pytest.raises(InputError, match=f'{name} is {value!r}'):
    fitting.check_training(100, **OPTIONS | {name: value})


def test_patience_needs_an_image_to_judge_by():
  options = OPTIONS | {'patience': 1}
  fitting.check_training(10, **options)
  with pytest.raises(InputError, match=r'holdout is 0.1: of 9 images'):
    fitting.check_training(9, **options)
  fitting.check_training(9, **OPTIONS)


LARGE = """
import pathlib, resource, sys
import numpy as np
from jaxclust import fitting
from jaxclust.autoencoder import Autoencoder

images = np.random.default_rng(0).integers(0, 256, (3000, 64, 64, 3), np.uint8)
model = Autoencoder((64, 64, 3), (16, 8, 8, 8))
path = pathlib.Path(sys.argv[1])
params, _ = fitting.train(path, model, images, images[:500], [0], OPTIONS)
params = fitting.jax.tree.map(lambda a: a[0], params)
encoder = fitting.Encoder(model, params, np.ones((1, 1), 'float32'), 256)
assert encoder.encode(images).shape == (3000, 128)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='tells of memory in KiB')
def test_images_of_64x64x3_train_within_8_gib(tmp_path):
  options = OPTIONS | {
    'batch_size': 256,
    'num_epochs': 1,
    'noise': 0.1,
    'max_shift': 2.0,
    'max_rotation': 5.0,
  }
  code = LARGE.replace('OPTIONS', repr(options))
  command = [sys.executable, '-c', code, str(tmp_path)]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  assert 2**28 < int(done.stdout.split()[-1]) < 8 * 2**30

"""Phases of a run: what they log and save, and how they go on."""

import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import IMAGES, OPTIONS, TEST_IMAGES, plan_of, run_of
from small_networks import train as train_in_memory

from jaxclust import (
  checkpoints,
  defaults,
  networks,
  phases,
  pipeline,
  plans,
  signals,
  steps,
  training,
  workdir,
)
from jaxclust.data import Dataset
from jaxclust.errors import RunError

pytestmark = pytest.mark.usefixtures('light_compiler')


def train(path, seeds=(0,), test_images=TEST_IMAGES, **options):
  path.mkdir(exist_ok=True)
  plan = plan_of(test_images=test_images, seeds=seeds, **options)
  return phases.train(path, 'autoencoder', plan, seeds)


def losses(path, seed=0):
  return [
    (r['epoch'], r['train_loss'], r.get('val_loss'))
    for r in workdir.read_log(path, phase='autoencoder', seed=seed)
  ]


def saved_steps(path):
  saved = path / 'checkpoints' / 'autoencoder'
  return sorted(int(p.name) for p in saved.iterdir() if p.is_dir())


@pytest.mark.slow
def test_a_phase_saves_and_logs_what_a_training_yields(tmp_path):
  seeds = (3, 4)
  params, records = train(tmp_path, seeds, patience=2)
  plan = plan_of(seeds=seeds, patience=2)
  course, found = train_in_memory(plan)
  chex.assert_trees_all_equal(params, training.final_params(plan, course))
  epochs = training.final_epochs(plan, course)
  for run, seed in enumerate(seeds):
    assert losses(tmp_path, seed) == [
      (number, epoch['train_loss'][run], epoch['val_loss'][run])
      for number, epoch in enumerate(found, 1)
    ]
    assert records[run]['seed'] == seed
    assert records[run]['epoch'] == epochs[run]
  _, saved = checkpoints.restore(
    tmp_path, 'autoencoder', training.blank(plan_of(seeds=seeds))
  )
  chex.assert_trees_all_equal(saved, course)


@pytest.mark.slow
@pytest.mark.parametrize('share', [1, np.inf])
def test_a_training_stopped_within_an_epoch_goes_on(
  share, tmp_path, monkeypatch
):
  monkeypatch.setattr(steps, '_CPU_SHARE', share)
  monkeypatch.setattr(steps, '_FEWEST_IMAGES', 8)
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)  # seven calls an epoch
  options = {'seeds': (0, 5), 'patience': 3, 'noise': 0.1, 'max_shift': 1.0}
  whole, _ = train(tmp_path / 'whole', **options)
  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
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
  resumed, _ = train(tmp_path / 'stopped', **options)
  chex.assert_trees_all_equal(whole, resumed)
  for seed in options['seeds']:
    found = losses(tmp_path / 'stopped', seed)
    assert found == losses(tmp_path / 'whole', seed)


def diverge(monkeypatch, step, change):
  """Changes the state from a step on."""
  train_steps = steps.train_steps

  def diverging(state, *args, **options):
    state = train_steps(state, *args, **options)
    return change(state) if int(state.step[0]) >= step else state

  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(steps, 'train_steps', diverging)


def spoil_loss(state):
  return state._replace(loss_sum=state.loss_sum.at[-1].set(jnp.nan))


def spoil_params(state):
  nan = jax.tree.map(lambda a: a.at[-1].set(jnp.nan), state.params)
  return state._replace(params=nan)


@pytest.mark.parametrize('spoil', [spoil_loss, spoil_params])
def test_what_is_not_finite_ends_a_training(spoil, tmp_path, monkeypatch):
  diverge(monkeypatch, 14, spoil)
  with pytest.raises(RunError, match=r'epoch 2.*checkpoint of step 7 is kept'):
    train(tmp_path, seeds=(0, 1))
  assert saved_steps(tmp_path) == [7]


def test_what_is_not_finite_within_an_epoch_is_not_saved(tmp_path, monkeypatch):
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)  # a step a call
  diverge(monkeypatch, 10, spoil_params)
  with pytest.raises(RunError, match=r'epoch 2.*checkpoint of step 9 is kept'):
    train(tmp_path)
  assert saved_steps(tmp_path) == [8, 9]


def test_a_learning_rate_of_a_million_ends_a_training(tmp_path, monkeypatch):
  monkeypatch.setattr(phases, '_SECONDS_BETWEEN_CHECKPOINTS', 0)
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)  # a step a call
  message = (
    r'epoch 1: lower learning_rate, which is 1000000.0 '
    r'\(the checkpoint of step 1 '
  )
  with pytest.raises(RunError, match=message):
    train(tmp_path, learning_rate=1e6)
  blank = training.blank(plan_of())
  step, course = checkpoints.restore(tmp_path, 'autoencoder', blank)
  assert step == 1
  chex.assert_tree_all_finite(course.state)


def test_a_signal_that_comes_while_it_looks_waits_for_the_next_save(
  tmp_path, monkeypatch
):
  ask = signals.requested

  def ask_just_before_it_comes():
    answer = ask()
    if not answer:
      signal.raise_signal(signal.SIGTERM)
    return answer

  def run():
    saver = phases._Saver(tmp_path, 'gmm', 0)
    with signals.postponed():
      saver.save(1, state)
      saver.save(2, state)
      pytest.fail('it goes on')

  state = {'a': jnp.zeros(2)}
  monkeypatch.setattr(signals._requests, 'number', None)
  monkeypatch.setattr(signals, 'requested', ask_just_before_it_comes)
  with pytest.raises(signals.Stopped), signals.listening():
    run()
  assert checkpoints.restore(tmp_path, 'gmm', state)[0] == 2


def test_a_config_names_the_network_and_the_optimizer(tmp_path):
  config = defaults.pipeline('digits', ('autoencoder',), 'kmeans')
  config.kmeans = defaults.kmeans()
  config.network = {'name': 'mlp', 'features': (6, 3)}
  config.training.update(OPTIONS | {'optimizer': 'sgd', 'learning_rate': 0.1})
  data = Dataset('made up', IMAGES)
  (found,) = pipeline.represent(config, data, [5], tmp_path, {})
  network = networks.build((8, 8, 1), name='mlp', features=(6, 3))
  plan = plan_of(
    jnp.asarray(IMAGES),
    None,
    (5,),
    network=network,
    optimizer='sgd',
    learning_rate=0.1,
  )
  course, epochs = train_in_memory(plan)
  chex.assert_trees_all_equal(found.own.params, run_of(course.state.params))
  assert found.points['train'].shape == (100, 3)
  assert epochs[-1]['train_loss'] < epochs[0]['train_loss']

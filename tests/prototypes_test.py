"""Prototypes: balanced assignments, heads, and training by both."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import OPTIONS, plan_of, run_of, train, train_until

from jaxclust import (
  encoding,
  metrics,
  networks,
  phases,
  plans,
  processes,
  steps,
  training,
)
from jaxclust.errors import InputError
from jaxclust.methods import METHODS, Batch
from jaxclust.methods.prototypes import balanced, information_loss

pytestmark = pytest.mark.usefixtures('light_compiler')

NETWORK = networks.build((8, 8, 1), name='strided', features=(4, 8))
BUILD = functools.partial(
  METHODS['prototypes'],
  num_clusters=4,
  num_heads=3,
  num_prototypes=12,
  frozen_steps=2,
)
METHOD = BUILD(NETWORK)
VIEWS = {'crop': 0.8, 'brightness': 0.2, 'batch_size': 25, 'momentum': 0.8}


@pytest.fixture(autouse=True)
def _one_step_a_call(monkeypatch):
  """So that all trainings of the module are calls of one program."""
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)


def alone(sums):
  """The pool of a device that has the whole batch."""
  return sums


def draw(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def draw_patterns(num_images=200):
  """Images of four patterns with noise, and which pattern each is of."""
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 4, num_images)
  patterns = rng.uniform(0, 1, (4, 4, 4, 1)).repeat(2, 1).repeat(2, 2)
  images = patterns[classes] + rng.normal(0, 0.05, (num_images, 8, 8, 1))
  return np.uint8(255 * np.clip(images, 0, 1)), classes


IMAGES, CLASSES = draw_patterns()


def plan_patterns(images=IMAGES, **options):
  options = VIEWS | options
  return plan_of(images, None, build=BUILD, network=NETWORK, **options)


def batch_of(num_images=20, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  views = jax.random.uniform(keys[0], (num_images, 2, 8, 8, 1))
  return Batch(views, views[:, 0], jnp.ones(num_images), ())


def test_assignments_are_plain_sinkhorn_in_float64():
  cosines = np.clip(draw((40, 6)) / 3, -1, 1)
  weight = np.ones(40, np.float32)
  plain = np.exp(np.float64(cosines) / 0.05)
  for _ in range(3):
    plain /= plain.sum(axis=0)
    plain /= plain.sum(axis=1, keepdims=True)
  found = balanced(jnp.asarray(cosines), jnp.asarray(weight), alone, 0.05)
  np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-7)


def test_assignments_are_balanced_among_images_that_count():
  cosines = jnp.asarray(np.clip(0.2 + draw((60, 5)) / 10, -1, 1))
  cosines = cosines.at[:, 0].add(0.1)  # all like the first
  weight = jnp.ones(60).at[50:].set(0)
  found = np.asarray(balanced(cosines, weight, alone, 0.1))
  np.testing.assert_array_equal(found[50:], 0)
  np.testing.assert_allclose(found[:50].sum(axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(found.sum(axis=0), 10, rtol=0.1)


def test_information_by_hand():
  y, u = np.array([0.25, 0.75]), np.array([0.5, 0.3, 0.2])
  entropy = -(y * np.log(y)).sum()
  # Y that knows nothing of U keeps its entropy, Y that U decides has none.
  apart = information_loss(jnp.asarray(np.outer(y, u), jnp.float32), 4.0)
  np.testing.assert_allclose(apart, (1 - 4) * entropy, rtol=1e-5)
  decided = jnp.array([[0.25, 0, 0], [0, 0.5, 0.25]])
  found = information_loss(decided, 4.0)
  np.testing.assert_allclose(found, -4 * entropy, rtol=1e-5)


def test_the_gradient_is_a_finite_difference():
  """The heads do not reach the network, so each part is moved alone."""
  params = jax.jit(METHOD.init)(jax.random.key(0), None)
  batch = batch_of()

  @jax.jit
  def loss(params):
    return METHOD.loss(params, batch, 10, alone)

  gradient = jax.grad(loss)(params)
  for part, step in (('projector', 1e-2), ('heads', 1e-2), ('prototypes', 0.1)):
    length = optax.tree.norm(gradient[part])
    direction = jax.tree.map(lambda g, n=length: g / n, gradient[part])
    ahead, behind = (
      loss(
        params
        | {
          part: jax.tree.map(
            lambda a, d, s=s: a + s * d, params[part], direction
          )
        }
      )
      for s in (step, -step)
    )
    slope = (ahead - behind) / (2 * step)
    if part != 'heads':  # targets follow the projector, without a gradient
      assert 0.3 * length < slope < 3 * length
    else:
      np.testing.assert_allclose(slope, length, rtol=0.02)


def test_heads_teach_the_network_nothing_and_prototypes_wait():
  params = jax.jit(METHOD.init)(jax.random.key(0), None)

  @jax.jit
  def gradient(params, step):
    return jax.grad(METHOD.loss)(params, batch_of(), step, alone)

  early, late = gradient(params, 0), gradient(params, 2)
  assert not np.asarray(early['prototypes']).any()
  assert np.asarray(late['prototypes']).any()
  other = params | {'heads': jax.tree.map(jnp.sin, params['heads'])}
  for part in ('network', 'projector', 'prototypes'):
    chex.assert_trees_all_close(
      gradient(other, 2)[part], late[part], rtol=1e-4, atol=1e-6
    )


def test_padding_does_not_change_the_loss():
  params = jax.jit(METHOD.init)(jax.random.key(0), None)
  batch, loss = batch_of(), jax.jit(METHOD.loss, static_argnums=3)
  padded = jax.tree.map(lambda a: jnp.concatenate([a, a[:7] * 0 + 0.5]), batch)
  padded = padded._replace(weight=jnp.arange(27) < 20)
  padded = padded._replace(weight=padded.weight.astype(jnp.float32))
  np.testing.assert_allclose(
    loss(params, padded, 9, alone), loss(params, batch, 9, alone), rtol=1e-5
  )


def first_state(plan):
  return training.blank(plan).state


@pytest.mark.slow
def test_devices_that_share_a_batch_make_the_same_steps():
  """Moments, assignments and entropies are those of the whole batch."""
  plan = plan_patterns(optimizer='sgd')
  order = np.asarray(
    training._draw_order(plan.orders, 0, plan.numbers, 25, True)
  )[:, :4]
  states = []
  for count in (1, 2):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('batch',))
    state, images = processes.replicate(
      mesh, (first_state(plan), jnp.asarray(IMAGES))
    )
    options = processes.replicate(mesh, plan.drawn)
    rates = np.full(4, 1e-2, np.float32)
    states.append(
      steps.train_steps(
        state, images, rows=order, learning_rates=rates, method=METHOD,
        optimizer='sgd', mesh=mesh, **options,
      )
    )  # fmt: skip
  one, two = states
  np.testing.assert_allclose(one.loss_sum, two.loss_sum, rtol=1e-4)
  chex.assert_trees_all_close(one.params, two.params, rtol=1e-3, atol=1e-4)


def labels_of(plan, params, images):
  method = plan.method
  embeddings = encoding.embed(method, params, images, 64)
  return method.assigner.assign(method.clusters(params), embeddings)


@functools.cache
def trained():
  plan = plan_patterns(num_epochs=20)
  course, losses = train(plan)
  return plan, run_of(training.final_params(plan, course)), losses


def test_patterns_are_found():
  plan, params, losses = trained()
  assert losses[-1]['train_loss'] < losses[0]['train_loss']
  assert losses[0].keys() == {'train_loss'}
  found = labels_of(plan, params, IMAGES)
  assert metrics.scores(CLASSES, found.labels, 4)['acc'] > 0.95
  assert ((found.confidence >= 0.25) & (found.confidence <= 1)).all()
  embeddings = encoding.embed(plan.method, params, IMAGES, 64)
  clusters = plan.method.clusters(params)
  shares = plan.method.assigner.probabilities(clusters, embeddings)
  np.testing.assert_array_equal(shares.argmax(axis=1), found.labels)
  np.testing.assert_array_equal(
    plan.method.assigner.predict(clusters, embeddings), found.labels
  )


def test_the_moments_kept_are_those_of_clean_images():
  """So that codes of the images a method is finished with are normalised."""
  plan, params, _ = trained()
  pixels = encoding.as_pixels(jnp.asarray(IMAGES))
  finished = plan.method.finish(params, pixels)

  def mean_of(x):
    return x.reshape(-1, x.shape[-1]).mean(axis=0)

  expected = NETWORK.apply(params['network'], pixels, mean_of, method='encode')
  found = plan.method.embed(finished, pixels)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_went_wrong_is_told_with_a_remedy():
  plan, params, _ = trained()
  assert not list(plan.method.complain(params))
  bad = params | {'shares': np.array([0.95, 0.05, 0, 0]), 'used': 0.05}
  first, second = plan.method.complain(bad)
  assert first.startswith('one cluster has 95% of the images: raise balance')
  assert second.startswith('only 5% of 12 prototypes are in use: lower')


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
  plan = plan_patterns()
  whole, _ = train(plan)
  train_until(11, tmp_path, 'prototypes', plan, monkeypatch)
  params, _ = phases.train(tmp_path, 'prototypes', plan, [0])
  chex.assert_trees_all_equal(params, training.final_params(plan, whole))


@pytest.mark.slow
def test_streamed_seeds_side_by_side_and_a_resident_one_alone_train_alike():
  streamed, losses = train(plan_patterns(seeds=(3, 4)))
  resident, same = train(plan_patterns(jnp.asarray(IMAGES), seeds=(4,)))
  assert [x['train_loss'][1] for x in losses] == [
    x['train_loss'][0] for x in same
  ]
  chex.assert_trees_all_equal(
    run_of(resident.state.params), run_of(streamed.state.params, 1)
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_clusters': 0}, 'num_clusters is 0'),
    ({'num_heads': 0}, 'num_heads is 0'),
    ({'num_views': 1}, 'num_views is 1: it must be a whole number of at least'),
    ({'balance': -1.0}, 'balance is -1.0'),
    ({'sharpness': 0.001}, 'sharpness is 0.001'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  method = METHODS['prototypes'](NETWORK, **{'num_clusters': 4} | options)
  with pytest.raises(InputError, match=message):
    plans.check_options(100, method, OPTIONS)


def test_a_batch_of_more_images_than_there_are_is_named():
  with pytest.raises(InputError, match='batch_size is 500, but there are 100'):
    plans.check_options(100, METHOD, OPTIONS | {'batch_size': 500})


def test_a_network_that_only_encodes_is_no_autoencoder():
  for name, options in (('autoencoder', {}), ('dec', {'num_clusters': 3})):
    method = METHODS[name](NETWORK, **options)
    with pytest.raises(InputError, match='StridedEncoder only encodes'):
      plans.check_options(100, method, OPTIONS)

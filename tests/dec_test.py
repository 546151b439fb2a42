"""DEC and IDEC: shares, targets, their divergence, and training by it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import IMAGES, OPTIONS, plan_of, run_of, train, train_until

from jaxclust import (
  encoding,
  kmeans,
  metrics,
  networks,
  phases,
  plans,
  training,
)
from jaxclust.errors import InputError
from jaxclust.methods import METHODS, Batch
from jaxclust.methods.dec import shares, sharpened

pytestmark = pytest.mark.usefixtures('light_compiler')

# A network whose code is the pixels, and whose reconstruction is 0.
PIXELS = networks.build((1, 1, 2), name='mlp', features=(2,))
ZEROS = jax.tree.map(
  jnp.zeros_like, PIXELS.init(jax.random.key(0), jnp.zeros((1, 1, 1, 2)))
)
ZEROS['params']['encoder_0']['kernel'] = jnp.eye(2)
PARAMS = {'network': ZEROS, 'centers': jnp.array([[0.0, 0.0], [1.0, 0.0]])}
DEC = functools.partial(METHODS['dec'], num_clusters=4, num_restarts=2)


def draw(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_shares(centers, x):
  x, centers = np.float64(x), np.float64(centers)
  kernel = 1 / (1 + np.square(x[:, None] - centers).sum(axis=2))
  return kernel / kernel.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('offset', [0.0, 300.0])
def test_shares_are_the_plain_formula(offset):
  centers, x = draw((5, 3)) + offset, draw((40, 3), 1) + offset
  found = shares(jnp.asarray(centers), jnp.asarray(x))
  np.testing.assert_allclose(found, plain_shares(centers, x), rtol=1e-4)


def test_targets_are_the_plain_formula_and_sharpen():
  q = plain_shares(draw((5, 3)), draw((40, 3), 1))
  weight = q**2 / q.sum(axis=0)
  expected = weight / weight.sum(axis=1, keepdims=True)
  found = np.asarray(sharpened(jnp.asarray(q, jnp.float32)))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
  # Clusters of equal size: what is large becomes larger.
  q = np.stack([q, *(np.roll(q, k, axis=1) for k in range(1, 5))]).reshape(
    -1, 5
  )
  found = np.asarray(sharpened(jnp.asarray(q, jnp.float32)))
  assert (found.max(axis=1) > q.max(axis=1)).all()


def batch_of(images, targets, weight=None):
  weight = jnp.ones(len(images)) if weight is None else weight
  return Batch(images[:, None], images, weight, targets)


def losses_of(targets, **options):
  method = METHODS['dec'](PIXELS, num_clusters=2, **options)
  images = jnp.array([[0.0, 0.0], [1.0, 0.0]]).reshape(2, 1, 1, 2)
  """The loss of each image, which weighs 1 among images of weight 0."""
  return [
    method.loss(PARAMS, batch_of(images, jnp.array(targets), weight), 0, None)
    for weight in jnp.eye(2)
  ]


def test_the_loss_is_a_divergence_by_hand():
  """Shares are 1 and 1/2 of their sum, so 2/3 and 1/3."""
  targets = [[0.8, 0.2], [0.0, 1.0]]
  first = 0.8 * np.log(0.8 * 3 / 2) + 0.2 * np.log(0.2 * 3)
  expected = np.array([first, np.log(3 / 2)])
  np.testing.assert_allclose(losses_of(targets), expected, rtol=1e-5)
  np.testing.assert_allclose(
    losses_of(targets, divergence=0.1, reconstruction=2.0),
    0.1 * expected + 2 * np.array([0, 1 / 2]),
    rtol=1e-5,
  )


def test_the_divergence_from_the_shares_themselves_is_0():
  np.testing.assert_allclose(
    losses_of([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]), 0, atol=1e-6
  )


@pytest.mark.parametrize('reconstruction', [0.0, 1.0])
def test_the_gradient_is_a_finite_difference(reconstruction):
  network = networks.build((1, 1, 6), name='mlp', features=(8, 3))
  method = METHODS['dec'](
    network, num_clusters=4, reconstruction=reconstruction
  )
  params = method.init(jax.random.key(0), None)
  params['centers'] = jnp.asarray(draw((4, 3)))
  images = jax.random.uniform(jax.random.key(1), (20, 1, 1, 6))
  targets = sharpened(shares(params['centers'], jnp.asarray(draw((20, 3), 1))))

  @jax.jit
  def loss(params):
    return method.loss(params, batch_of(images, targets), 0, None)

  gradient = jax.grad(loss)(params)
  length = optax.tree.norm(gradient)
  direction = jax.tree.map(lambda g: g / length, gradient)
  step = 2e-3
  ahead, behind = (
    loss(jax.tree.map(lambda a, d, s=s: a + s * d, params, direction))
    for s in (step, -step)
  )
  np.testing.assert_allclose((ahead - behind) / (2 * step), length, rtol=0.01)


@pytest.mark.parametrize('reconstruction', [0.0, 1.0])
def test_separated_clusters_agree_as_well_as_before_or_better(reconstruction):
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 4, 200)
  patterns = rng.uniform(0, 1, (4, 8, 8, 1))
  noise = rng.normal(0, 0.25, (200, 8, 8, 1))
  images = np.float32(np.clip(patterns[classes] + noise, 0, 1))
  network = networks.build((8, 8, 1), name='mlp', features=(16, 3))
  options = {'network': network, 'num_epochs': 10}
  plan = plan_of(images, None, **options)
  course, _ = train(plan)
  before = training.final_params(plan, course)
  codes = encoding.embed(plan.method, run_of(before), images, 64)
  found = kmeans.fit(jax.random.key(0), codes, num_clusters=4, num_restarts=2)
  build = functools.partial(DEC, reconstruction=reconstruction)
  plan = plan_of(images, None, build=build, **options)
  course, losses = train(
    plan, training.start(plan, training.blank(plan, before))
  )
  params = run_of(training.final_params(plan, course))
  method = plan.method
  embeddings = encoding.embed(method, params, images, 64)
  labels = method.assigner.predict(method.clusters(params), embeddings)
  scores = [
    metrics.scores(classes, np.asarray(own), 4)['ari']
    for own in (kmeans.predict(found.centers, codes), labels)
  ]
  assert scores[1] >= scores[0] > 0.5
  assert losses[-1]['train_loss'] < losses[0]['train_loss']


def test_an_assignment_is_the_largest_share():
  centers, x = draw((5, 3)), draw((40, 3), 1)
  assigner = METHODS['dec'](PIXELS, num_clusters=5).assigner
  found = assigner.assign(jnp.asarray(centers), jnp.asarray(x))
  q = plain_shares(centers, x)
  np.testing.assert_array_equal(found.labels, q.argmax(axis=1))
  np.testing.assert_array_equal(
    found.labels, assigner.predict(jnp.asarray(centers), jnp.asarray(x))
  )
  np.testing.assert_allclose(found.confidence, q.max(axis=1), rtol=1e-4)
  nearest = np.linalg.norm(x[:, None] - centers, axis=2).min(axis=1)
  np.testing.assert_allclose(found.distance, nearest, rtol=1e-4)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
  """Within an epoch: the targets are in the checkpoint."""
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)  # seven calls an epoch
  plan = plan_of(build=DEC)
  whole, _ = train(plan)
  train_until(11, tmp_path, 'dec', plan, monkeypatch)
  params, (record,) = phases.train(tmp_path, 'dec', plan, [0])
  assert record['epoch'] == 3
  chex.assert_trees_all_equal(params, whole.state.params)


@pytest.mark.slow
def test_seeds_side_by_side_are_seeds_alone():
  together, _ = train(plan_of(seeds=(3, 4), build=DEC))
  for run, seed in enumerate((3, 4)):
    alone, _ = train(plan_of(seeds=(seed,), build=DEC))
    chex.assert_trees_all_equal(
      run_of((alone.state.params, alone.targets)),
      run_of((together.state.params, together.targets), run),
    )


@pytest.mark.slow
def test_streamed_and_resident_images_train_alike():
  streamed, losses = train(plan_of(build=DEC))
  resident, same = train(plan_of(jnp.asarray(IMAGES), build=DEC))
  assert losses == same
  chex.assert_trees_all_equal(streamed, resident)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_clusters': 0}, 'num_clusters is 0: it must be a whole number'),
    ({'num_clusters': 101}, 'num_clusters is 101, but x has only 100 rows'),
    ({'num_restarts': 0}, 'num_restarts is 0'),
    ({'divergence': -1.0}, 'divergence is -1.0'),
    ({'reconstruction': np.inf}, 'reconstruction is inf'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  method = METHODS['dec'](PIXELS, **{'num_clusters': 4} | options)
  with pytest.raises(InputError, match=message):
    plans.check_options(100, method, OPTIONS)

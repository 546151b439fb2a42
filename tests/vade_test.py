"""VaDE and DCN: their losses by plain formulas, and training by them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from dec_test import PIXELS, ZEROS, batch_of, draw
from small_networks import OPTIONS, plan_of, run_of, train, train_until

from jaxclust import encoding, metrics, networks, phases, plans, training
from jaxclust.algorithms.em import GMMParams
from jaxclust.errors import InputError
from jaxclust.methods import METHODS
from jaxclust.methods.vade import divergence

pytestmark = pytest.mark.usefixtures('light_compiler')


def draw_prior(num_clusters=3, size=2):
  weights = jax.nn.log_softmax(jnp.asarray(draw((num_clusters,), 5)))
  means = jnp.asarray(draw((num_clusters, size), 6))
  return GMMParams(weights, means, jnp.exp(jnp.asarray(draw(means.shape, 7))))


def test_the_divergence_is_its_expectation_by_many_draws():
  """Of log q(z | x) q(c | x) / p(z, c), for the same q(c | x)."""
  prior, mean = draw_prior(), draw((1, 2), 8)
  log_variance, z = draw((1, 2), 9), draw((1, 2), 10)
  found = divergence(prior, *map(jnp.asarray, (mean, log_variance, z)))
  deviation = np.exp(np.float64(log_variance[0]) / 2)
  q = scipy.stats.norm(np.float64(mean[0]), deviation)
  parts = [
    scipy.stats.norm(np.float64(m), np.float64(s))
    for m, s in zip(prior.means, prior.scale_tril, strict=True)
  ]
  weights = np.exp(np.float64(prior.log_weights))
  joint = np.array(
    [w * part.pdf(z[0]).prod() for w, part in zip(weights, parts, strict=True)]
  )
  shares = joint / joint.sum()
  drawn = q.rvs((400_000, 2), random_state=np.random.default_rng(0))
  log_q = q.logpdf(drawn).sum(axis=1)
  expected = sum(
    share * (log_q - part.logpdf(drawn).sum(axis=1) + np.log(share / w)).mean()
    for share, part, w in zip(shares, parts, weights, strict=True)
  )
  np.testing.assert_allclose(found, [expected], rtol=5e-3, atol=5e-3)


def test_the_divergence_from_the_prior_itself_is_0():
  prior = GMMParams(jnp.zeros(1), jnp.ones((1, 2)), jnp.full((1, 2), 0.5))
  log_variance = jnp.full((4, 2), 2 * jnp.log(0.5))
  z = jnp.asarray(draw((4, 2)))
  found = divergence(prior, jnp.ones((4, 2)), log_variance, z)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_the_loss_of_dcn_by_hand():
  """Reconstructions are 0, embeddings the pixels, centers at 0 and 1."""
  method = METHODS['dcn'](PIXELS, num_clusters=2, closeness=0.5)
  params = {'network': ZEROS, 'centers': jnp.array([[0.0, 0.0], [1.0, 0.0]])}
  images = jnp.array([[0.2, 0.4], [1.0, 0.5]]).reshape(2, 1, 1, 2)
  found = [
    method.loss(params, batch_of(images, (), weight), 0, None)
    for weight in jnp.eye(2)
  ]
  expected = [0.2 / 2 + 0.25 * 0.2, 1.25 / 2 + 0.25 * 0.25]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


BUILDS = {
  'dcn': functools.partial(METHODS['dcn'], num_clusters=4, num_restarts=2),
  'vade': functools.partial(METHODS['vade'], num_clusters=4, num_restarts=2),
}


def draw_patterns():
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 4, 200)
  patterns = rng.uniform(0, 1, (4, 8, 8, 1))
  noise = rng.normal(0, 0.25, (200, 8, 8, 1))
  return np.float32(np.clip(patterns[classes] + noise, 0, 1)), classes


NETWORK = networks.build((8, 8, 1), name='mlp', features=(16, 3))
IMAGES, CLASSES = draw_patterns()


@pytest.fixture(autouse=True)
def _one_step_a_call(monkeypatch):
  """So that all trainings of a method are calls of one program."""
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)


def plan_patterns(**options):
  return plan_of(IMAGES, None, network=NETWORK, **options)


@functools.cache
def autoencoder():
  plan = plan_patterns(num_epochs=10)
  return training.final_params(plan, train(plan)[0])


@pytest.mark.parametrize('name', BUILDS)
def test_separated_clusters_stay_found(name):
  plan = plan_patterns(build=BUILDS[name], num_epochs=10)
  course = training.start(plan, training.blank(plan, autoencoder()))
  course, losses = train(plan, course)
  params, method = run_of(training.final_params(plan, course)), plan.method
  embeddings = encoding.embed(method, params, IMAGES, 64)
  found = method.assigner.assign(method.clusters(params), embeddings)
  assert metrics.scores(CLASSES, found.labels, 4)['acc'] > 0.95
  assert losses[-1]['train_loss'] < losses[0]['train_loss']


@pytest.mark.parametrize('name', BUILDS)
def test_a_stopped_training_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
  """What VaDE draws is that of the step."""
  plan = plan_patterns(build=BUILDS[name], num_epochs=2)
  whole, _ = train(plan)
  train_until(17, tmp_path, name, plan, monkeypatch)
  params, _ = phases.train(tmp_path, name, plan, [0])
  chex.assert_trees_all_equal(params, whole.state.params)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('dcn', {'num_clusters': 0}, 'num_clusters is 0'),
    ('dcn', {'closeness': -1.0}, 'closeness is -1.0'),
    ('vade', {'num_clusters': 101}, 'num_clusters is 101'),
    ('vade', {'deviation': 0.0}, 'deviation is 0.0'),
    ('vade', {'reg': np.nan}, 'reg is nan'),
  ],
)
def test_options_that_cannot_be_used_are_named(name, options, message):
  method = METHODS[name](PIXELS, **{'num_clusters': 4} | options)
  with pytest.raises(InputError, match=message):
    plans.check_options(100, method, OPTIONS)

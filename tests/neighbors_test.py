"""Nearest neighbours, and heads that learn from them and from themselves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prototypes_test import CLASSES, IMAGES, NETWORK, alone, draw, labels_of
from sklearn.neighbors import NearestNeighbors
from small_networks import OPTIONS, plan_of, run_of, train, train_until

from jaxclust import metrics, networks, phases, plans, training
from jaxclust.algorithms import neighbors
from jaxclust.errors import InputError
from jaxclust.methods import METHODS, Batch

pytestmark = pytest.mark.usefixtures('light_compiler')


@pytest.fixture(autouse=True)
def _one_step_a_call(monkeypatch):
  """So that all trainings of a method are calls of one program."""
  monkeypatch.setattr(plans, '_CPU_OPERATIONS', 1)


BUILDS = {
  'neighbors': functools.partial(
    METHODS['neighbors'], num_clusters=4, num_heads=3, num_neighbors=5
  ),
  'self_labels': functools.partial(
    METHODS['self_labels'], num_clusters=4, num_heads=3, balance=1.0
  ),
}


@pytest.mark.parametrize('block', [2**24, 2**9])
@pytest.mark.parametrize('offset', [0.0, 1e3])
def test_neighbours_are_scikit_learns(monkeypatch, block, offset):
  """In one block, and in blocks of which the last overlaps."""
  monkeypatch.setattr(neighbors, '_BLOCK', block)
  jax.clear_caches()
  x = draw((130, 6)) + np.float32(offset)
  found, squared = neighbors.nearest(jnp.asarray(x), 4)
  peer = NearestNeighbors(n_neighbors=5).fit(np.float64(x))
  distances, numbers = peer.kneighbors()
  np.testing.assert_array_equal(found, numbers[:, :4])
  np.testing.assert_allclose(
    squared, distances[:, :4] ** 2, rtol=1e-3, atol=1e-4
  )


def test_equal_points_are_neighbours_and_no_point_is_its_own():
  found, squared = neighbors.nearest(jnp.zeros((5, 2)), 4)
  for row, own in enumerate(np.asarray(found)):
    assert sorted({*own.tolist(), row}) == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(squared, 0)
  with pytest.raises(InputError, match=r'num_neighbors is 5: .* from 1 to 4'):
    neighbors.nearest(jnp.zeros((5, 2)), 5)


def params_of(name):
  method = BUILDS[name](NETWORK)
  return method, jax.jit(method.init)(jax.random.key(0), None)


def shares_of(params, x):
  """Shares `[G, N, K]` of all heads, plainly."""
  found = []
  for run in range(3):
    own = run_of(params['heads'], run)
    clusters = {'head': own, 'centers': params['centers']}
    found.append(params_of('neighbors')[0].assigner.probabilities(clusters, x))
  return np.stack(found)


def test_targets_are_what_heads_see_in_the_neighbours():
  method, params = params_of('neighbors')
  x = jnp.asarray(draw((40, NETWORK.code_size())))
  kept, found = method.targets(params, x, None)
  unit = x / jnp.linalg.norm(x, axis=1, keepdims=True)
  numbers = np.asarray(neighbors.nearest(unit, 5)[0])
  np.testing.assert_array_equal(kept, numbers)
  expected = shares_of(params, x)[:, numbers].mean(axis=2)
  np.testing.assert_allclose(found, expected.swapaxes(0, 1), rtol=1e-5)
  # Neighbours stay those of the first epoch.
  others = jnp.roll(kept, 1, axis=0)
  kept, found = method.targets(params, x, (others, found))
  np.testing.assert_array_equal(kept, others)
  expected = shares_of(params, x)[:, np.asarray(others)].mean(axis=2)
  np.testing.assert_allclose(found, expected.swapaxes(0, 1), rtol=1e-5)


def test_targets_are_labels_where_a_head_is_sure():
  build = functools.partial(BUILDS['self_labels'], confidence=0.6)
  _, params = params_of('self_labels')
  x = jnp.asarray(5 * draw((40, NETWORK.code_size())))
  found = np.asarray(build(NETWORK).targets(params, x, None))
  shares = shares_of(params, x).swapaxes(0, 1)
  is_sure = shares.max(axis=2) >= 0.6
  assert 0 < is_sure.mean() < 1
  np.testing.assert_array_equal(found.sum(axis=2), is_sure)
  np.testing.assert_array_equal(
    found.argmax(axis=2)[is_sure], shares.argmax(axis=2)[is_sure]
  )


@pytest.mark.parametrize('name', BUILDS)
def test_the_loss_is_the_formula_in_float64(name):
  method, params = params_of(name)
  num_images = 20
  views = jax.random.uniform(jax.random.key(1), (num_images, 1, 8, 8, 1))
  targets = jax.nn.softmax(jnp.asarray(draw((num_images, 3, 4))))
  if name == 'self_labels':
    targets = jnp.round(targets)  # some are sure
  own = targets if name == 'self_labels' else (None, targets)
  batch = Batch(views, views[:, 0], jnp.ones(num_images), own)
  found = jax.jit(method.loss, static_argnums=3)(params, batch, 0, alone)

  def mean_of(x):
    return x.reshape(-1, x.shape[-1]).mean(axis=0)

  network = params['network']
  encode = jax.jit(
    lambda x: NETWORK.apply(network, x, mean_of, method='encode')
  )
  code = encode(views[:, 0])
  expected, finished = 0.0, jax.jit(method.finish)(params, views[:, 0])
  for run in range(3):
    own = run_of(finished['heads'], run)
    clusters = {'head': own, 'centers': params['centers']}
    p = np.float64(method.assigner.probabilities(clusters, code))
    t = np.float64(targets[:, run])
    mean = p.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum()
    if name == 'neighbors':
      expected += -np.log((p * t).sum(axis=1)).mean() - 5 * entropy
    else:
      expected += -(t * np.log(p)).sum() / max(t.sum(), 1) - entropy
  np.testing.assert_allclose(found, num_images * expected, rtol=1e-4)


def plan_patterns(name, **options):
  options = {'crop': 0.8, 'batch_size': 25} | options
  options = {'build': BUILDS.get(name), 'network': NETWORK} | options
  return plan_of(IMAGES, None, **options)


@functools.cache
def stages():
  """ACC of heads on a network of random weights, after each stage."""
  found, params = {}, None
  for name in BUILDS:
    plan = plan_patterns(name, num_epochs=8)
    course = training.start(plan, training.blank(plan, params))
    course, _ = train(plan, course)
    params = training.final_params(plan, course)
    labels = labels_of(plan, run_of(params), IMAGES).labels
    found[name] = metrics.scores(CLASSES, labels, 4)['acc']
  return found


@pytest.mark.slow
def test_heads_learn_from_neighbours_and_keep_what_they_are_sure_of():
  found = stages()
  assert found['neighbors'] > 0.95
  assert found['self_labels'] >= found['neighbors'] - 0.01


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
  plan = plan_patterns('neighbors', num_epochs=2)
  whole, _ = train(plan)
  train_until(11, tmp_path, 'neighbors', plan, monkeypatch)
  params, _ = phases.train(tmp_path, 'neighbors', plan, [0])
  chex.assert_trees_all_equal(params, training.final_params(plan, whole))


def test_it_goes_on_from_an_autoencoder_too():
  network = networks.build((8, 8, 1), name='mlp', features=(6, 3))
  before = METHODS['autoencoder'](network).init(jax.random.key(0), None)
  params = BUILDS['neighbors'](network).init(jax.random.key(1), before)
  chex.assert_trees_all_equal(params['network'], before)
  assert len(jax.tree.leaves(params['heads'])[0]) == 3


def test_heads_of_another_number_of_clusters_cannot_go_on():
  _, params = params_of('neighbors')
  other = METHODS['neighbors'](NETWORK, num_clusters=5)
  with pytest.raises(Exception, match='shape'):
    other.init(jax.random.key(0), params)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('neighbors', {'num_neighbors': 100}, 'num_neighbors is 100: .* 1 to 99'),
    ('neighbors', {'num_heads': 0}, 'num_heads is 0'),
    ('neighbors', {'balance': -1.0}, 'balance is -1.0'),
    ('self_labels', {'confidence': 1.5}, 'confidence is 1.5'),
    ('self_labels', {'num_clusters': 101}, 'num_clusters is 101'),
  ],
)
def test_options_that_cannot_be_used_are_named(name, options, message):
  method = METHODS[name](NETWORK, **{'num_clusters': 4} | options)
  with pytest.raises(InputError, match=message):
    plans.check_options(100, method, OPTIONS)


def draw_rings(num_points=240):
  """Points on three rings, one within the other, and which ring."""
  rng = np.random.default_rng(0)
  rings = np.arange(num_points) % 3
  angles = 2 * np.pi * np.arange(num_points) / num_points
  x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  x = (1 + rings)[:, None] * x + rng.normal(0, 0.02, x.shape)
  return np.float32(x), rings


def test_connected_points_share_a_place_and_others_find_it():
  """Rings that no k-means on the points tells apart."""
  x, rings = draw_rings()
  manifold = neighbors.embed(jnp.asarray(x), 5, 3)
  places = np.asarray(manifold.places)
  np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1, rtol=1e-5)
  similar = places @ places.T
  same = rings[:, None] == rings[None]
  assert similar[same].min() > 0.9
  assert np.abs(similar[~same]).max() < 0.1
  others = jnp.asarray(x[:50] * 1.01)
  found = np.asarray(neighbors.extend(manifold, others, 5))
  assert (found * places[:50]).sum(axis=1).min() > 0.9


def test_a_place_too_large_for_its_points_is_named():
  with pytest.raises(InputError, match=r'num_features is 9: .* from 1 to 8'):
    neighbors.embed(jnp.asarray(draw((9, 2))), 2, 9)

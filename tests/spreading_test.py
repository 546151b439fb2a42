"""Shares of clusters that neighbours agree upon, and committees that vote."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import IMAGES, model_of
from sklearn.neighbors import NearestNeighbors

from jaxclust.algorithms import spreading
from jaxclust.algorithms.assignment import nearest_center
from jaxclust.algorithms.consensus import agreement, align, vote
from jaxclust.errors import InputError
from jaxclust.methods import METHODS, committee
from jaxclust.methods.committee import convene
from jaxclust.networks import build

pytestmark = pytest.mark.usefixtures('light_compiler')


def draw(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def draw_shares(num_points, num_clusters):
  shares = np.exp(2 * draw((num_points, num_clusters), 1))
  return shares / shares.sum(axis=1, keepdims=True)


def blobs(num_points=120):
  """Two narrow groups of directions, and which is whose."""
  truth = np.arange(num_points) % 2
  x = 0.2 * draw((num_points, 3))
  x[np.arange(num_points), truth] += 1
  return x * np.exp(draw((num_points, 1), 2)), truth  # of any length


@pytest.mark.parametrize('strength', [0.0, 0.5, 0.99])
def test_spread_shares_solve_their_equation(strength):
  x, own = draw((90, 5)), draw_shares(90, 4)
  found = spreading.spread(jnp.asarray(x), jnp.asarray(own), 6, strength)
  chex.assert_shape(found.shares, (90, 4))
  unit = np.float64(x) / np.linalg.norm(x, axis=1, keepdims=True)
  peer = NearestNeighbors(n_neighbors=6).fit(unit)
  mean = peer.kneighbors_graph(unit).toarray() / 6
  np.testing.assert_array_equal(np.diag(mean), 1 / 6)  # each is its own
  expected = np.linalg.solve(
    np.eye(90) - strength * mean, (1 - strength) * np.float64(own)
  )
  np.testing.assert_allclose(found.shares, expected, atol=2e-3)
  np.testing.assert_allclose(found.shares.sum(axis=1), 1, rtol=1e-4)


def test_neighbours_outvote_what_is_wrong():
  x, truth = blobs()
  labels = truth.copy()
  labels[:24] = 1 - labels[:24]
  own = jax.nn.one_hot(labels, 2)
  for strength, wrong in ((0.0, 24), (0.95, 0)):
    found = spreading.spread(jnp.asarray(x), own, 10, strength)
    assert (np.asarray(found.shares.argmax(axis=1)) != truth).sum() == wrong


def test_points_of_the_spread_keep_their_shares_and_others_follow_them():
  x, truth = blobs()
  inner = nearest_center('euclidean')
  centers = jnp.array([[0.9, 0.7, 0.0], [0.0, 1.0, 0.0]])  # too near
  own = spreading.shares_of(inner, centers, jnp.asarray(x))
  wrong = np.flatnonzero(np.asarray(own.argmax(axis=1)) != truth)
  assert 0 < len(wrong) < 20
  found = spreading.spread(jnp.asarray(x), own, 8, 0.9)
  assigner = spreading.spreading(inner, 8, 0.9)
  clusters = centers, found
  again = assigner.probabilities(clusters, jnp.asarray(x))
  np.testing.assert_allclose(again, found.shares, atol=1e-3)
  # Points that are wrong alone, beside those of the spread.
  near = jnp.asarray(1.01 * x[wrong])
  np.testing.assert_array_equal(assigner.predict(clusters, near), truth[wrong])
  judged = assigner.assign(clusters, near)
  shares = assigner.probabilities(clusters, near)
  np.testing.assert_array_equal(judged.confidence, shares.max(axis=1))
  np.testing.assert_array_equal(assigner.centers(clusters), centers)
  assert assigner.sample is None


def test_many_numbers_are_compared_in_fewer():
  """Points of 5 of 200 dimensions have the neighbours that they have there."""
  few = draw((60, 5))
  turn = np.linalg.qr(draw((200, 200)))[0][:5]
  own = draw_shares(60, 3)
  one, other = (
    spreading.spread(jnp.asarray(x), jnp.asarray(own), 5, 0.8)
    for x in (few, few @ turn)
  )
  chex.assert_shape(other.basis, (200, 128))
  np.testing.assert_allclose(one.shares, other.shares, atol=1e-4)


def test_options_out_of_range_are_named():
  x = jnp.ones((5, 2))
  with pytest.raises(InputError, match=r'num_neighbors is 6: .* from 1 to 5'):
    spreading.spread(x, x, 6, 0.5)
  with pytest.raises(InputError, match=r'strength is 1: .* from 0 to 0\.999'):
    spreading.spread(x, x, 2, 1)


def members():
  """Three methods, their parameters, and what they find in images."""
  networks = [build((6, 5, 3), name='mlp', features=(n, 3)) for n in (4, 5, 6)]
  methods = [METHODS['dec'](network, num_clusters=4) for network in networks]
  pixels = jnp.asarray(IMAGES / 255, jnp.float32)
  params, labels = [], []
  for seed, method in enumerate(methods):
    own = method.init(jax.random.key(seed), None)
    x = method.embed(own, pixels)
    own |= {'centers': x[np.array([0, 9, 20, 33])]}
    params.append(own)
    labels.append(method.assigner.predict(method.clusters(own), x))
  return methods, params, np.stack(labels), pixels


def test_the_majority_that_agrees_most_decides_for_a_committee():
  methods, params, labels, pixels = members()
  own = convene(tuple(params), labels, 4)
  method = committee(tuple(methods))
  x = method.embed(own, pixels)
  chex.assert_shape(x, (40, method.code_size))
  names = np.asarray(own['names'])
  reference = int(np.flatnonzero((names == np.arange(4)).all(axis=1))[0])
  np.testing.assert_array_equal(names, align(labels, reference, 4))
  shares = np.asarray(method.assigner.probabilities(own, x))
  voters = np.flatnonzero(own['weights'])
  assert sorted(voters) == sorted(np.argsort(-agreement(labels, 4))[:2])
  counts = sum(np.eye(4)[names[v][labels[v]]] for v in voters)
  np.testing.assert_allclose(shares, counts / 2, rtol=1e-6)
  clear = counts.max(axis=1) > 1
  found = method.assigner.predict(method.clusters(own), x)
  np.testing.assert_array_equal(
    np.asarray(found)[clear], vote(labels[voters], names[voters])[clear]
  )


def test_centers_of_a_committee_are_those_of_its_members_by_name():
  methods, params, *_ = members()
  names = jnp.array([[0, 1, 2, 3], [1, 2, 0, 3], [3, 0, 1, 2]])
  own = {'members': tuple(params), 'names': names}
  centers = committee(tuple(methods)).assigner.centers(own)
  for place, (one, names) in enumerate(zip(params, own['names'], strict=True)):
    for cluster, name in enumerate(names):
      part = centers[name, 3 * place : 3 * place + 3]
      np.testing.assert_array_equal(part, one['centers'][cluster])


def test_a_loaded_committee_encodes_as_all_its_members():
  own = model_of('committee')
  x = own.encode(IMAGES)
  chex.assert_shape(x, (40, 12))
  shares = np.asarray(own.responsibilities(IMAGES))
  np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)

"""Choosing the number of clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
import sklearn.metrics
from jax.sharding import NamedSharding, PartitionSpec

from jaxclust import inputs, selection
from jaxclust.errors import InputError

pytestmark = pytest.mark.usefixtures('light_compiler')

KEY = jax.random.key(0)


def blobs(num_points=400, spread=1.0):
  """Five clusters in the corners of a simplex, equally far from each other."""
  x, labels = sklearn.datasets.make_blobs(
    num_points, centers=20 * np.eye(5), cluster_std=spread, random_state=3
  )
  return x.astype(np.float32), labels


def test_two_pairs_by_hand():
  x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
  labels = jnp.array([[0, 0, 1, 1]])
  # Own 1; others 10.5 for the outer points and 9.5 for the inner ones.
  expected = (9.5 / 10.5 + 8.5 / 9.5) / 2
  found = selection.silhouette(x, labels, [2])
  np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize('offset', [0.0, 1e4])
def test_silhouettes_are_scikit_learns(offset):
  x, labels = blobs(spread=4.0)
  x = x + np.float32(offset)
  rng = np.random.default_rng(0)
  alone = np.where(np.arange(400) == 7, 5, labels)
  labelings = np.stack([labels, rng.integers(0, 9, 400), alone])
  found = selection.silhouette(x, labelings, [5, 9, 6], block_size=128)
  exact = [
    sklearn.metrics.silhouette_score(x.astype(np.float64), one)
    for one in labelings
  ]
  np.testing.assert_allclose(found, exact, atol=1e-5)


def test_silhouettes_do_not_depend_on_where_rows_lie(monkeypatch):
  x, labels = blobs(spread=4.0)
  labels = np.stack([labels, labels % 2])
  expected = selection.silhouette(x, labels, [5, 2])
  mesh = jax.make_mesh((2,), ('rows',))
  rows = NamedSharding(mesh, PartitionSpec('rows'))
  sharded = selection.silhouette(
    jax.device_put(x, rows), labels, [5, 2], block_size=70
  )
  np.testing.assert_allclose(sharded, expected, rtol=1e-5)
  monkeypatch.setattr(inputs.memory, 'device_bytes', lambda: 1)
  streamed = selection.silhouette(x, labels, [5, 2], block_size=150)
  np.testing.assert_allclose(streamed, expected, rtol=1e-5)


def test_an_empty_cluster_is_left_out_and_one_cluster_has_no_silhouette():
  x, labels = blobs()
  two = np.stack([labels, np.zeros_like(labels)])
  more, one = selection.silhouette(x, two, [8, 1])
  np.testing.assert_allclose(
    more, sklearn.metrics.silhouette_score(x, labels), rtol=1e-4
  )
  assert np.isnan(one)


def test_equal_labelings_are_stable():
  labels = np.array([0, 0, 1, 1, 2, 2])
  assert selection.stability([labels, 2 - labels, labels]) == 1
  assert selection.stability([labels, labels[[0, 2, 4, 1, 3, 5]]]) < 0.1


@pytest.mark.slow
def test_each_criterion_finds_five_far_blobs():
  x, _ = blobs()
  counts = [6, 2, 5]
  records = list(
    selection.sweep(
      KEY, x, num_clusters=counts, num_restarts=4, covariance='spherical'
    )
  )
  assert [r['num_clusters'] for r in records] == counts
  labels = np.stack([r['labels'] for r in records])
  scores = selection.silhouette(x, labels, counts)
  for record, score in zip(records, scores, strict=True):
    record['silhouette'] = float(score)
  choices = selection.choose(records)
  assert choices.pop('stability') in (2, 5)  # few blobs are stable too
  told = selection.conclusion(records)
  assert told.startswith('5 clusters')
  assert '(inertia 5, silhouette 5, stability ' in told
  assert choices.pop('aic') in (5, 6)  # it is known to take too many
  assert choices == dict.fromkeys(
    ('inertia', 'silhouette', 'strength', 'bic'), 5
  )


def test_the_strength_of_predictions_is_that_of_pairs():
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, 3, (2, 60))
  predicted = np.where(rng.random(60) < 0.7, labels, predicted)
  shares = []
  for cluster in range(3):
    own = predicted[labels == cluster]
    pairs = [a == b for i, a in enumerate(own) for b in own[:i]]
    shares.append(np.mean(pairs))
  found = selection.prediction_strength(labels, predicted, 3)
  assert found == pytest.approx(min(shares))
  assert selection.prediction_strength(labels, labels, 4) == 0  # one is empty


@pytest.mark.slow
def test_points_of_one_cloud_have_no_number_of_clusters():
  x = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
  options = {'num_clusters': (2,), 'num_restarts': 3, 'covariance': 'diag'}
  (record,) = selection.sweep(KEY, x, **options)
  assert record['strength'] < 0.8
  record['silhouette'] = None
  assert 'do not tell' in selection.conclusion([record])
  alone = record | {'num_clusters': 1, 'strength': None}
  assert 'must be tried' in selection.conclusion([alone])


def test_the_elbow_is_where_the_curve_bends_most():
  inertia = {1: 100, 2: 50, 3: 10, 4: 8, 5: 7}
  records = [
    {'num_clusters': k, 'inertia': v, 'silhouette': None, 'stability': None}
    | {'bic': -v, 'aic': float('nan'), 'strength': None if k < 2 else k / 5}
    for k, v in inertia.items()
  ]
  assert selection.choose(records[::-1]) == {
    'inertia': 3,
    'silhouette': None,
    'stability': None,
    'strength': 5,
    'bic': 1,
    'aic': None,
  }


def test_two_points_and_a_straight_line_have_no_elbow():
  for counts in ((2, 9), (2, 3, 4)):
    records = [
      {'num_clusters': k, 'inertia': 20.0 - k}
      | dict.fromkeys(('silhouette', 'stability', 'strength', 'bic', 'aic'))
      for k in counts
    ]
    assert selection.choose(records)['inertia'] is None


def test_labels_must_be_those_of_the_clusters():
  with pytest.raises(
    InputError, match='labels go from 0 to 5: with 2 clusters'
  ):
    selection.silhouette(jnp.eye(3), jnp.array([[0, 5, 0]]), (2,))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_clusters': ()}, 'num_clusters is'),
    ({'num_clusters': (2, 2)}, 'different numbers'),
    ({'num_clusters': (2, 5)}, 'num_clusters has 5: .* at most 4, half'),
    ({'num_clusters': (0,)}, 'num_clusters is 0'),
    ({'num_restarts': 1}, 'num_restarts is 1'),
    ({'covariance': 'round'}, 'covariance is'),
    ({'reg': -1.0}, 'reg is'),
  ],
)
def test_options_that_cannot_be_used_are_named(options, message):
  x = np.zeros((9, 2), np.float32)
  defaults = {'num_clusters': (2,)}
  with pytest.raises(InputError, match=message):
    next(selection.sweep(KEY, x, **(defaults | options)))


def test_labels_must_fit_the_points():
  with pytest.raises(InputError, match=r'labels have shape \(1, 3\)'):
    selection.silhouette(jnp.zeros((4, 2)), np.zeros((1, 3), int), [1])

"""Scores of clusterings against labels."""

import numpy as np
import pytest
import sklearn.metrics

from jaxclust import metrics


def test_a_worked_example():
  classes = np.array([0, 0, 0, 1, 1, 2])
  labels = np.array([1, 1, 0, 0, 0, 2])
  scores = metrics.scores(classes, labels, 3)
  # Cluster 0 holds one 0 and two 1s, cluster 1 two 0s, cluster 2 the 2.
  assert scores['acc'] == pytest.approx(5 / 6)
  assert scores['purity'] == pytest.approx(5 / 6)
  assert scores['cluster_purity'] == pytest.approx([2 / 3, 1, 1])
  table = metrics.confusion(classes, labels, 3)
  np.testing.assert_array_equal(table, [[1, 2, 0], [2, 0, 0], [0, 0, 1]])


def test_scores_with_names_are_scikit_learns():
  rng = np.random.default_rng(0)
  classes, labels = rng.integers(0, 5, 200), rng.integers(0, 7, 200)
  scores = metrics.scores(classes, labels, 7)
  for key, peer in (
    ('ari', sklearn.metrics.adjusted_rand_score),
    ('nmi', sklearn.metrics.normalized_mutual_info_score),
    ('ami', sklearn.metrics.adjusted_mutual_info_score),
    ('v_measure', sklearn.metrics.v_measure_score),
  ):
    assert scores[key] == pytest.approx(peer(classes, labels))


def test_numbering_does_not_matter():
  classes = np.repeat(np.arange(4), 5)
  labels = np.array([2, 0, 3, 1])[classes]
  scores = metrics.scores(classes, labels, 4)
  for key in ('ari', 'nmi', 'ami', 'v_measure', 'acc', 'purity'):
    assert scores[key] == pytest.approx(1)


@pytest.mark.parametrize(
  'names',
  [
    [-1, 7, 100],
    [100, -1, 7],
    ['cat', 'dog', 'eel'],
    ['eel', 'cat', 'dog'],
    [0.5, 1.5, 9.0],
  ],
)
def test_classes_may_have_any_names(names):
  plain = np.array([0, 0, 1, 2, 2, 2])
  labels = np.array([0, 0, 1, 1, 2, 2])
  scores = metrics.scores(np.array(names)[plain], labels, 3)
  for key, expected in metrics.scores(plain, labels, 3).items():
    assert scores[key] == pytest.approx(expected)
  assert scores['acc'] == pytest.approx(5 / 6)


def test_more_clusters_than_classes_leave_some_unmatched():
  classes = np.array([0, 0, 0, 0, 1, 1])
  labels = np.array([0, 0, 1, 1, 2, 3])
  scores = metrics.scores(classes, labels, 4)
  assert scores['acc'] == pytest.approx(3 / 6)
  assert scores['purity'] == 1


def test_fewer_clusters_than_classes_leave_some_unmatched():
  scores = metrics.scores(np.arange(4), np.array([0, 0, 1, 1]), 2)
  assert scores['acc'] == pytest.approx(2 / 4)


def test_a_cluster_without_points_has_no_purity():
  scores = metrics.scores(np.array([0, 1]), np.array([0, 2]), 3)
  assert scores['cluster_purity'] == [1, 0, 1]

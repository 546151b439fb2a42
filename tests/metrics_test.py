"""Scores of clusterings against labels."""

import numpy as np
import pytest

from jaxclust import metrics


def check(table, expected):
  """Checks the scores of the points that a confusion matrix counts."""
  table = np.array(table)
  classes, labels = np.indices(table.shape).reshape(2, -1)
  counts = table.ravel()
  classes, labels = np.repeat(classes, counts), np.repeat(labels, counts)
  num_clusters = table.shape[1]
  np.testing.assert_array_equal(
    metrics.confusion(classes, labels, num_clusters), table
  )
  scores = metrics.scores(classes, labels, num_clusters)
  assert set(expected) <= set(scores)
  for key, value in expected.items():
    assert scores[key] == pytest.approx(value, abs=1e-12), key


def test_a_class_in_two_clusters():
  """Of 6 pairs, 2 are in one class, 1 in one cluster, 1 in both.

  ARI: (1 - 2/6) / (3/2 - 2/6). Entropies in bits: 1 of the classes, 3/2 of the
  clusters; mutual information 1. It is 1 too for 2 of the 6 ways to draw the
  cluster of two points and 1/2 for the others: 2/3 is expected.
  AMI: (1 - 2/3) / (5/4 - 2/3).
  """
  expected = {'ari': 4 / 7, 'nmi': 4 / 5, 'ami': 4 / 7, 'v_measure': 4 / 5}
  expected |= {'acc': 3 / 4, 'purity': 1, 'cluster_purity': [1, 1, 1]}
  check([[2, 0, 0], [0, 1, 1]], expected)


def test_clusters_that_cut_across_the_classes():
  """Of 6 pairs, 2 are in one class, 2 in one cluster, none in both.

  ARI: (0 - 4/6) / (2 - 4/6). No mutual information, but 1 bit for 2 of the 6
  ways to draw a cluster. AMI: (0 - 1/3) / (1 - 1/3).
  """
  expected = {'ari': -1 / 2, 'nmi': 0, 'ami': -1 / 2, 'v_measure': 0}
  expected |= {'acc': 1 / 2, 'purity': 1 / 2, 'cluster_purity': [1 / 2, 1 / 2]}
  check([[1, 1], [1, 1]], expected)


def test_a_mixed_cluster_beside_two_pure_ones():
  """Of 28 pairs, 12 are in one class, 8 in one cluster, 4 in both.

  ARI: (4 - 96/28) / (10 - 96/28). Entropies in bits: 1 of the classes, 3/2 of
  the clusters; half the points are in the mixed cluster, where 1 bit is
  missing, so that the mutual information is 1/2. NMI: 1/2 / (5/4).
  """
  expected = {'ari': 2 / 23, 'nmi': 2 / 5, 'v_measure': 2 / 5}
  expected |= {'acc': 1 / 2, 'purity': 3 / 4, 'cluster_purity': [1 / 2, 1, 1]}
  check([[2, 2, 0], [2, 0, 2]], expected)


def test_three_classes_of_which_one_is_in_two_clusters():
  """Of 15 pairs, 4 are in one class, 4 in one cluster, 2 in both.

  ARI: (2 - 16/15) / (4 - 16/15). Mutual information: log2(64) / 6 = 1 bit. Both
  entropies: 2/3 + log2(3) / 2.
  """
  nmi = 1 / (2 / 3 + np.log2(3) / 2)
  expected = {'ari': 7 / 22, 'nmi': nmi, 'v_measure': nmi}
  expected |= {'acc': 5 / 6, 'purity': 5 / 6, 'cluster_purity': [2 / 3, 1, 1]}
  check([[1, 2, 0], [2, 0, 0], [0, 0, 1]], expected)


def test_the_best_matching_is_not_the_greedy_one():
  """Of 45 pairs, 24 are in one class, 24 in one cluster, 12 in both.

  ARI: (12 - 64/5) / (24 - 64/5). A greedy matching gets 4 + 0 points right.
  """
  expected = {'ari': -1 / 14, 'acc': 6 / 10}
  expected |= {'purity': 7 / 10, 'cluster_purity': [4 / 7, 1]}
  check([[4, 3], [3, 0]], expected)


def test_fewer_clusters_than_classes_leave_some_unmatched():
  check([[1, 0], [1, 0], [0, 1], [0, 1]], {'acc': 2 / 4, 'purity': 2 / 4})


def test_a_cluster_without_points_has_no_purity():
  check([[1, 0, 0], [0, 0, 1]], {'cluster_purity': [1, 0, 1]})


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

"""Several clusterings of the same points: how they agree, and their vote."""

import jax.numpy as jnp
import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from jaxclust.algorithms.consensus import agreement, align, vote


def test_agreement_is_scikit_learns_mutual_information():
  labels = np.random.default_rng(0).integers(0, 3, (4, 100))
  labels[1, :80] = labels[0, :80]
  pairs = [[normalized_mutual_info_score(a, b) for b in labels] for a in labels]
  expected = (np.sum(pairs, axis=1) - 1) / 3  # without itself
  np.testing.assert_allclose(
    agreement(jnp.asarray(labels), 3), expected, rtol=1e-4
  )


def test_one_clustering_alone_agrees_with_none():
  assert agreement(jnp.zeros((1, 5), jnp.int32), 2).tolist() == [0.0]


def test_clusters_are_named_after_those_of_the_reference():
  truth = np.random.default_rng(0).integers(0, 4, 200)
  orders = np.array([[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]])
  labels = orders[:, truth]
  names = align(labels, 1, 4)
  for own, row in zip(names, labels, strict=True):
    np.testing.assert_array_equal(own[row], labels[1])
  np.testing.assert_array_equal(names[1], range(4))
  np.testing.assert_array_equal(vote(labels, names), labels[1])


def test_a_vote_is_better_than_its_voters():
  """Each is wrong elsewhere, and names its clusters in another order."""
  rng = np.random.default_rng(0)
  truth, labels = rng.integers(0, 3, 600), []
  for _ in range(5):
    wrong = rng.random(600) < 0.2
    own = np.where(wrong, rng.integers(0, 3, 600), truth)
    labels.append(rng.permutation(3)[own])
  labels = np.stack(labels)
  found = vote(labels, align(labels, 2, 3))
  one = normalized_mutual_info_score(truth, labels[2])
  assert normalized_mutual_info_score(truth, found) > one + 0.15


def test_a_cluster_that_one_lacks_is_no_harm():
  labels = np.array([[0, 0, 1, 1, 2], [0, 0, 0, 0, 1], [2, 2, 1, 1, 0]])
  names = align(labels, 0, 3)
  assert sorted(names[1]) == [0, 1, 2]
  assert vote(labels, names).tolist() == [0, 0, 1, 1, 2]

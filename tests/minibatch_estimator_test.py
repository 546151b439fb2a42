"""k-means on mini-batches as an estimator, beside scikit-learn's."""

import pickle

import jax
import numpy as np
import pytest
import sklearn.cluster
from point_sets import blobs, same_partition

from jaxclust import kmeans
from jaxclust.errors import InputError
from jaxclust.estimators import MiniBatchKMeans

X, LABELS = blobs(num_points=600, spread=0.5)


def close(a, b, rtol=1e-4, atol=1e-4):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_it_is_the_function():
  found = MiniBatchKMeans(
    4, random_state=7, max_no_improvement=None, max_iter=2, batch_size=50
  ).fit(X)
  result = kmeans.fit_minibatch(
    jax.random.key(7), X, num_clusters=4, num_restarts=1, batch_size=50,
    num_batches=24,
  )  # fmt: skip
  np.testing.assert_array_equal(found.cluster_centers_, result.centers)
  close(found.inertia_, result.inertia)
  assert (found.n_steps_, found.n_iter_) == (24, 2)
  assert same_partition(found.labels_, LABELS)
  np.testing.assert_array_equal(found.predict(X), found.labels_)


@pytest.mark.parametrize(
  'ends', [{}, {'tol': 1e-2, 'max_no_improvement': None}]
)
def test_a_fit_ends_when_batches_bring_nothing(ends):
  found = MiniBatchKMeans(4, random_state=0, batch_size=60, **ends).fit(X)
  assert 1 < found.n_steps_ < 1000
  longer = MiniBatchKMeans(
    4, random_state=0, batch_size=60, max_no_improvement=None, max_iter=3
  ).fit(X)
  assert longer.n_steps_ == 30
  close(found.inertia_, longer.inertia_, rtol=0.02)


def test_patience_counts_batches_in_a_row():
  """From the right centers of two rows, the inertia of each batch is 0: the
  second batch is the best, and no other is better."""
  x = np.array([[0.0], [10.0]], np.float32)
  options = {'num_clusters': 2, 'init': x, 'batch_size': 40}
  for patience in (1, 5):
    found = kmeans.fit_minibatch(
      jax.random.key(0), x, patience=patience, **options
    )
    assert found.converged
    assert found.num_steps == 2 + patience
  later = kmeans.fit_minibatch(jax.random.key(0), x, **options)
  assert (int(later.num_steps), bool(later.converged)) == (100, False)


def test_batches_of_the_callers_are_means_of_all_so_far():
  parts = np.split(X, 6)
  found = MiniBatchKMeans(4, init=X[:4])
  theirs = sklearn.cluster.MiniBatchKMeans(
    4, init=X[:4], n_init=1, reassignment_ratio=0.0
  )
  for part in parts:
    found.partial_fit(part)
    theirs.partial_fit(part)
    assert found.labels_.shape == (100,)
    close(found.cluster_centers_, theirs.cluster_centers_)
    np.testing.assert_array_equal(found.labels_, theirs.labels_)
    close(found.inertia_, theirs.inertia_)
  assert found.n_steps_ == 6


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_rows_that_come_later_weigh_as_much_as_those_of_a_fit(metric):
  found = MiniBatchKMeans(4, random_state=0, metric=metric).fit(X)
  before, counts = found.cluster_centers_, np.bincount(found.labels_)
  far = 1.5 * before[2] + np.zeros((5, 1), np.float32)
  again = pickle.loads(pickle.dumps(found)).partial_fit(far)
  moved = np.abs(again.cluster_centers_ - before).max(axis=1) > 1e-3
  if metric == 'euclidean':
    assert moved.tolist() == [False, False, True, False]
    expected = (counts[2] * before[2] + far.sum(axis=0)) / (counts[2] + 5)
    close(again.cluster_centers_[2], expected, rtol=0.01)
  else:
    assert not moved.any()


def test_directions_that_come_later_weigh_as_much_as_the_first():
  """The mean of the first two has a length of cos 60 degrees."""
  first = np.array([[1.0, 3**0.5], [1.0, -(3**0.5)]], np.float32)
  later = np.array([[0.0, 5.0]], np.float32)
  options = {'n_clusters': 1, 'metric': 'cosine', 'random_state': 0}
  found = MiniBatchKMeans(**options).partial_fit(first).partial_fit(later)
  close(found.cluster_centers_, [[0.5**0.5, 0.5**0.5]])
  result = kmeans.fit(
    jax.random.key(0), first, num_clusters=1, metric='cosine', num_restarts=1
  )
  state = kmeans.update(kmeans.resume(result, 'cosine'), later)
  close(kmeans.best(state).centers, [[0.5**0.5, 0.5**0.5]])


def test_a_batch_without_weight_moves_no_center():
  found = MiniBatchKMeans(4, random_state=0).partial_fit(X)
  centers = found.cluster_centers_
  found.partial_fit(X[:5], sample_weight=np.zeros(5))
  np.testing.assert_array_equal(found.cluster_centers_, centers)
  np.testing.assert_array_equal(found.labels_, found.predict(X[:5]))
  assert found.inertia_ == 0
  before = pickle.dumps(found)
  with pytest.raises(InputError):
    found.partial_fit(X[:5], sample_weight=np.full(5, np.nan))
  assert pickle.dumps(found) == before


def test_rows_of_float64_are_about_one_origin():
  far = X.astype(np.float64) + 1e9
  found = MiniBatchKMeans(4, init=far[:4])
  near = MiniBatchKMeans(4, init=X[:4])
  for part in range(0, 600, 200):
    found.partial_fit(far[part : part + 200])
    near.partial_fit(X[part : part + 200])
  close(found.cluster_centers_ - 1e9, near.cluster_centers_, atol=1e-3)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 0}, '^batch_size is 0'),
    ({'max_iter': 0}, '^max_iter is 0'),
    ({'max_no_improvement': 0}, '^max_no_improvement is 0'),
    ({'tol': -1.0}, '^tol is -1'),
    ({'n_clusters': 700}, '^n_samples=600 should be >= n_clusters=700'),
    ({'init': X[:2], 'n_init': 1}, r'centers \(2, 5\) .* of clusters 8: init'),
  ],
)
def test_a_mistake_is_reported(options, message):
  with pytest.raises(InputError, match=message):
    MiniBatchKMeans(**options).fit(X)


def test_few_rows_for_starts_are_made_more():
  with pytest.warns(RuntimeWarning, match='init_size=3 should be larger than'):
    found = MiniBatchKMeans(4, init_size=3, random_state=0).fit(X)
  other = MiniBatchKMeans(4, init_size=12, random_state=0).fit(X)
  np.testing.assert_array_equal(found.cluster_centers_, other.cluster_centers_)


def test_labels_are_left_out_on_demand(capsys):
  found = MiniBatchKMeans(4, compute_labels=False, verbose=1).fit(X)
  assert not hasattr(found, 'labels_')
  assert f'{found.n_steps_} mini-batches' in capsys.readouterr().out

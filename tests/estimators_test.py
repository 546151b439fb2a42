"""k-means and mixtures as estimators: scikit-learn's numbers."""

import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
import sklearn.datasets
import sklearn.mixture
from point_sets import same_partition
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from jaxclust import gmm, kmeans
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.errors import InputError
from jaxclust.estimators import GaussianMixture, KMeans, MiniBatchKMeans


def blobs(num_points=150, num_features=3, num_clusters=3, spread=1.0, seed=0):
  x, _ = sklearn.datasets.make_blobs(
    num_points, num_features, centers=num_clusters, cluster_std=spread,
    random_state=seed,
  )  # fmt: skip
  return x.astype(np.float32)


X = blobs()


def close(a, b, rtol=1e-4, atol=1e-4):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_k_means_is_the_function():
  found = KMeans(3, n_init=2, random_state=7).fit(X)
  result = kmeans.fit(jax.random.key(7), X, num_clusters=3, num_restarts=2)
  np.testing.assert_array_equal(found.cluster_centers_, result.centers)
  labels = kmeans.predict(result.centers, X)
  np.testing.assert_array_equal(found.labels_, labels)
  np.testing.assert_array_equal(found.predict(X), labels)
  np.testing.assert_array_equal(
    found.transform(X), kmeans.transform(result.centers, X)
  )
  assert found.inertia_ == float(result.inertia)
  assert found.n_iter_ == int(result.num_steps)
  assert found.score(X) == float(kmeans.score(result.centers, X))
  assert found.labels_.dtype == found.predict(X).dtype == np.int32
  assert found.cluster_centers_.dtype == found.transform(X).dtype == np.float32


def test_a_mixture_is_the_function():
  found = GaussianMixture(3, covariance_type='diag', random_state=7).fit(X)
  result = gmm.fit(jax.random.key(7), X, num_components=3, covariance='diag')
  np.testing.assert_array_equal(found.means_, result.params.means)
  np.testing.assert_array_equal(found.predict(X), gmm.predict(result.params, X))
  np.testing.assert_array_equal(
    found.predict_proba(X), gmm.responsibilities(result.params, X)
  )
  assert found.lower_bound_ == float(result.log_likelihood)
  assert found.n_iter_ == int(result.num_steps)
  assert found.converged_ is True
  close(found.score(X), found.lower_bound_)
  assert found.predict(X).dtype == np.int32


def test_an_int_is_the_seed_and_a_random_state_draws_one():
  first = KMeans(3, n_init=2, random_state=0)
  again, other = clone(first), clone(first).set_params(random_state=5)
  again.set_params(random_state=np.random.RandomState(5))
  seed = np.random.RandomState(5).randint(np.iinfo(np.int32).max)
  drawn = clone(first).set_params(random_state=seed)
  x = np.random.default_rng(0).normal(size=X.shape)
  found = [e.fit(x).cluster_centers_ for e in (first, again, drawn, other)]
  np.testing.assert_array_equal(found[1], found[2])
  assert not np.array_equal(found[0], found[1])
  assert not np.array_equal(found[2], found[3])


def test_k_means_ends_where_scikit_learns_does():
  x = blobs(spread=4.0)
  start = x[:3]
  ours = KMeans(3, init=start, tol=0.0).fit(x)
  theirs = sklearn.cluster.KMeans(3, init=start, n_init=1, tol=0).fit(x)
  close(ours.cluster_centers_, theirs.cluster_centers_)
  close(ours.inertia_, theirs.inertia_)
  close(ours.transform(x), theirs.transform(x))
  close(ours.score(x), theirs.score(x))
  np.testing.assert_array_equal(ours.labels_, theirs.labels_)
  assert (np.diff(np.bincount(ours.labels_)) > 0).any()


def test_clusters_of_drawn_starts_come_by_size():
  found = KMeans(3, random_state=0).fit(blobs(spread=4.0))
  assert (np.diff(np.bincount(found.labels_)) <= 0).all()
  mixture = GaussianMixture(3, random_state=0).fit(blobs(spread=4.0))
  assert (np.diff(mixture.weights_) <= 0).all()


@pytest.mark.parametrize('family', FAMILIES)
def test_a_mixture_ends_where_scikit_learns_does(family):
  x = blobs(spread=2.0)
  options = {'covariance_type': family, 'tol': 1e-5, 'max_iter': 500}
  ours = GaussianMixture(3, means_init=x[:3], reg=0.0, **options).fit(x)
  covariance = np.cov(x.T, bias=True).astype(np.float32)
  variance = np.diag(covariance)
  precisions = {
    'full': np.stack(3 * [np.linalg.inv(covariance)]),
    'tied': np.linalg.inv(covariance),
    'diag': np.stack(3 * [1 / variance]),
    'spherical': np.full(3, 1 / variance.mean()),
  }
  theirs = sklearn.mixture.GaussianMixture(
    3, means_init=x[:3], weights_init=np.full(3, 1 / 3), reg_covar=0,
    precisions_init=precisions[family], **options,
  ).fit(x)  # fmt: skip
  close(ours.weights_, theirs.weights_, atol=1e-3)
  close(ours.means_, theirs.means_, atol=1e-2)
  for name in ('covariances_', 'precisions_', 'precisions_cholesky_'):
    found, wanted = getattr(ours, name), getattr(theirs, name)
    assert found.shape == wanted.shape
    close(found, wanted, rtol=1e-2, atol=1e-2)
  close(ours.predict_proba(x), theirs.predict_proba(x), 0, 0.01)
  close(ours.score_samples(x), theirs.score_samples(x), atol=1e-2)
  for name in ('score', 'bic', 'aic'):
    close(getattr(ours, name)(x), getattr(theirs, name)(x), atol=0)


def test_weights_are_repeated_rows():
  weight = np.random.default_rng(0).permutation(np.arange(len(X)) % 3)
  repeated = X.repeat(weight, axis=0)
  start = X[weight > 0][:3]
  ours = KMeans(3, init=start)
  plain = clone(ours).fit(repeated)
  ours.fit(X, sample_weight=weight.tolist())
  close(ours.cluster_centers_, plain.cluster_centers_)
  close(ours.inertia_, plain.inertia_)
  close(ours.score(X, sample_weight=weight), plain.score(repeated))
  mixture = GaussianMixture(3, means_init=start, covariance_type='diag')
  plain = clone(mixture).fit(repeated)
  mixture.fit(X, sample_weight=weight)
  close(mixture.means_, plain.means_)
  for name in ('bic', 'aic'):
    weighted = getattr(mixture, name)(X, sample_weight=weight)
    close(weighted, getattr(plain, name)(repeated))


@pytest.mark.parametrize(
  ('estimator', 'message'),
  [
    (KMeans(200), r'^n_samples=150 should be >= n_clusters=200: ask for'),
    (KMeans(n_init=0), '^n_init is 0: it must be a whole number of at least 1'),
    (KMeans(max_iter=0), '^max_iter is 0'),
    (KMeans(2, init=[[0.0], [1.0, 2.0]]), '^init is no array'),
    (KMeans(init='best'), "^init is 'best'"),
    (KMeans(metric='l1'), "^metric is 'l1'"),
    (GaussianMixture(0), '^n_components is 0'),
    (GaussianMixture(covariance_type='round'), "^covariance_type is 'round'"),
    (GaussianMixture(init_params='best'), "^init_params is 'best'.*means_init"),
    (GaussianMixture(reg=-1), '^reg is -1'),
    (GaussianMixture(reg_covar=-1), '^reg_covar is -1'),
    (KMeans(algorithm='full'), "^algorithm is 'full'"),
    (
      KMeans(3, init=lambda x, k, random_state: x[:k, :2], n_init=1),
      r'centers \(1, 3, 2\) does not match the number of features',
    ),
    (GaussianMixture(2, weights_init=[0.5, 0.6]), '^weights_init sum to 1.1'),
    (GaussianMixture(2, weights_init=[0, 1]), 'the least is 0: they must be'),
    (
      GaussianMixture(2, weights_init=[0.5, 0.5], means_init=[X[:2], X[2:4]]),
      r'^means_init has shape \(2, 2, 3\): beside',
    ),
    (KMeans(2, init=lambda x, k, random_state: x, n_init=0), '^n_init is 0'),
    (GaussianMixture(2, weights_init=[1]), r'^weights_init has .* be \(2,\)'),
    (GaussianMixture(1, precisions_init=-np.eye(3)[None]), 'not positive'),
    (
      GaussianMixture(1, covariance_type='diag', precisions_init=[[1, 0, 1]]),
      'values that are not above 0',
    ),
    (
      GaussianMixture(2, means_init=X[:3]),
      r'centers \(3, 3\) .* clusters 2: means_init',
    ),
  ],
)
def test_a_mistake_is_reported_in_names_of_the_estimator(estimator, message):
  with pytest.raises(InputError, match=message):
    estimator.fit(X)


def test_a_fit_that_does_not_converge_warns_as_scikit_learn_does():
  x = blobs(spread=9.0)
  with pytest.warns(
    ConvergenceWarning, match='in 1 steps: raise max_iter'
  ) as w:
    KMeans(3, max_iter=1, tol=0.0, init=x[:3]).fit(x)
  assert [warning.filename for warning in w] == [__file__]
  with pytest.warns(ConvergenceWarning, match='initialization did not conv'):
    found = GaussianMixture(3, max_iter=1, tol=0.0, means_init=x[:3]).fit(x)
  assert found.converged_ is False


def test_fits_in_threads_leave_warnings_as_they_were():
  """Fits that warn, each within another's time."""
  before = warnings.filters, warnings.showwarning
  options = {'init': 'random', 'max_iter': 1, 'tol': 0.0}

  def fit(seed):
    return KMeans(3, n_init=1, random_state=seed, **options).fit(X)

  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    inside = warnings.showwarning
    with ThreadPoolExecutor(8) as pool:
      found = list(pool.map(fit, range(24)))
    assert warnings.showwarning is inside
  assert (warnings.filters, warnings.showwarning) == before
  assert len(caught) == len(found) == 24
  assert {warning.category for warning in caught} == {ConvergenceWarning}


def test_k_means_is_imported_without_the_network():
  code = (
    'import sys, jaxclust.estimators\n'
    'assert not {"flax", "optax"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_what_is_not_fitted_says_so():
  for estimator in (KMeans(), GaussianMixture()):
    for name in ('predict', 'transform', 'score', 'bic'):
      if hasattr(estimator, name):
        with pytest.raises(NotFittedError):
          getattr(estimator, name)(X)
  with pytest.raises(NotFittedError):
    GaussianMixture().sample()


def test_copies_and_pickles_are_alike():
  for estimator in (
    KMeans(3, n_init=2, random_state=0),
    GaussianMixture(3, covariance_type='diag', random_state=0),
  ):
    estimator.fit(X)
    again = pickle.loads(pickle.dumps(estimator))
    method = 'transform' if hasattr(estimator, 'transform') else 'predict_proba'
    np.testing.assert_array_equal(
      getattr(again, method)(X), getattr(estimator, method)(X)
    )
    bare = clone(estimator)
    assert bare.get_params() == estimator.get_params()
    assert not any(name.endswith('_') for name in vars(bare))


@pytest.mark.slow
def test_a_search_finds_the_number_of_clusters():
  def separation(estimator, x, y=None):
    return silhouette_score(x, estimator.predict(x))

  search = GridSearchCV(
    KMeans(n_init=2, random_state=0), {'n_clusters': [2, 3]},
    scoring=separation, cv=ShuffleSplit(2, test_size=20, random_state=0),
  )  # fmt: skip
  search.fit(blobs(spread=0.3))
  assert search.best_params_ == {'n_clusters': 3}
  assert len(np.unique(search.predict(X))) == 3


def test_a_sample_comes_with_its_components():
  found = GaussianMixture(3, covariance_type='diag', random_state=4)
  found.fit(blobs(spread=0.1))
  x, labels = found.sample(20)
  assert x.shape == (20, 3)
  np.testing.assert_array_equal(labels, found.predict(x))
  with pytest.raises(InputError, match="Invalid value for 'n_samples': -1"):
    found.sample(-1)


@pytest.mark.parametrize(('init', 'count'), [('random', 10), ('k-means++', 1)])
def test_auto_is_as_many_starts_as_scikit_learns(init, count):
  options = {'init': init, 'random_state': 0}
  auto, given = (KMeans(3, n_init=n, **options).fit(X) for n in ('auto', count))
  np.testing.assert_array_equal(auto.cluster_centers_, given.cluster_centers_)
  assert auto.inertia_ == given.inertia_


def test_sparse_rows_are_dense_ones():
  dense = np.where(X > 0, X, 0)
  options = {'n_init': 2, 'random_state': 0}
  found = KMeans(3, **options).fit(scipy.sparse.csr_array(dense))
  expected = KMeans(3, **options).fit(dense)
  close(found.cluster_centers_, expected.cluster_centers_)
  labels = found.predict(scipy.sparse.csc_array(dense))
  np.testing.assert_array_equal(labels, expected.labels_)


def test_a_function_gives_centers_to_start_from():
  def first(x, n_clusters, random_state):
    return x[random_state.permutation(len(x))[:n_clusters]]

  options = {'n_init': 2, 'random_state': 0, 'algorithm': 'elkan'}
  state = np.random.RandomState(0)
  starts = [first(X, 3, state) for _ in range(2)]
  found = KMeans(3, init=first, **options).fit(X.tolist())
  expected = KMeans(3, init=np.stack(starts)).fit(X)
  close(found.cluster_centers_, expected.cluster_centers_)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_a_mixture_goes_on_from_what_is_given(family):
  x = blobs(spread=4.0).astype(np.float64)
  theirs = sklearn.mixture.GaussianMixture(3, covariance_type=family, tol=0)
  theirs.set_params(max_iter=2, random_state=0).fit(x)
  given = {
    'means_init': theirs.means_,
    'weights_init': theirs.weights_,
    'precisions_init': theirs.precisions_,
    'covariance_type': family,
    'max_iter': 1,
    'tol': 0.0,
    'reg_covar': 1e-6,
  }
  theirs = sklearn.mixture.GaussianMixture(3, **given)
  ours = GaussianMixture(3, **given)
  for each in (theirs, ours):
    each.fit(x)
  close(ours.means_, theirs.means_)
  close(ours.weights_, theirs.weights_)
  close(ours.covariances_, theirs.covariances_, rtol=1e-3)


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_a_warm_start_makes_further_steps():
  options = {'random_state': 0, 'tol': 0.0}
  x = blobs(spread=6.0)
  warm = GaussianMixture(3, warm_start=True, max_iter=2, **options)
  bounds = [warm.fit(x).lower_bound_ for _ in range(3)]
  whole = GaussianMixture(3, max_iter=6, **options).fit(x)
  close(whole.lower_bounds_[1::2], bounds, rtol=1e-6)
  assert sorted(set(bounds)) == bounds


def test_no_steps_leave_the_start():
  start = X[:3].astype(np.float64)
  found = GaussianMixture(3, means_init=start, max_iter=0).fit(X)
  close(found.means_, start)
  close(found.weights_, np.full(3, 1 / 3))
  assert (found.converged_, found.n_iter_, found.lower_bounds_) == (
    False,
    0,
    [],
  )
  assert np.isfinite(GaussianMixture(3, max_iter=0).fit(X).lower_bound_)


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
@pytest.mark.parametrize('init', ['kmeans', 'random_from_data'])
def test_lower_bounds_are_those_of_fits_of_fewer_steps(init):
  options = {'init_params': init, 'random_state': 0, 'tol': 0.0}
  x = blobs(spread=6.0)
  whole = GaussianMixture(3, max_iter=4, **options).fit(x)
  fewer = [
    GaussianMixture(3, max_iter=n, **options).fit(x) for n in range(1, 5)
  ]
  close(whole.lower_bounds_, [f.lower_bound_ for f in fewer], rtol=1e-6)


@pytest.mark.parametrize(
  ('tol', 'message'), [(0.0, 'strict conv'), (1e-2, 'shift is within tol')]
)
def test_a_verbose_fit_prints_its_inertias(tol, message, capsys):
  x = blobs(spread=6.0)
  found = KMeans(3, init=x[:3], tol=tol, verbose=1).fit(x)
  start, *lines = capsys.readouterr().out.splitlines()
  assert start == 'Initialization complete'
  values = [float(line.split('inertia ')[1][:-1]) for line in lines[:-1]]
  assert len(values) == found.n_iter_ + 1
  close(values[-1], found.inertia_)
  close(values[0], -kmeans.score(x[:3], x))
  assert message in lines[-1]


@pytest.mark.parametrize('estimator', [KMeans(3), MiniBatchKMeans(3)])
def test_given_centers_are_one_start(estimator):
  estimator.set_params(init=X[:3], n_init=10)
  with pytest.warns(RuntimeWarning, match='performing only one init') as w:
    estimator.fit(X)
  assert [warning.filename for warning in w] == [__file__]


def test_random_shares_are_a_start():
  mixture = GaussianMixture(3, init_params='random', random_state=0)
  again = clone(mixture).fit(X)
  mixture.fit(X)
  assert np.isfinite(mixture.means_).all()
  np.testing.assert_array_equal(again.means_, mixture.means_)


def test_the_ridge_may_be_in_units_of_the_data():
  x = 1e3 * X
  variance = x.var(axis=0, dtype=np.float64).mean()
  given = GaussianMixture(3, reg_covar=0.1 * variance, random_state=0).fit(x)
  relative = GaussianMixture(3, reg=0.1, random_state=0).fit(x)
  close(given.covariances_, relative.covariances_)


SECONDS = (
  1_700_000_000 + np.repeat([0, 60, 90], [20, 30, 25]) + np.arange(75) % 9
)


@pytest.mark.parametrize('x', [SECONDS, SECONDS + 0.5], ids=['int', 'float'])
def test_rows_that_float32_cannot_tell_apart_end_as_in_float64(x):
  x = np.stack([x, x % 7], axis=1)
  theirs = sklearn.cluster.KMeans(3, n_init=5, random_state=0).fit(x)
  ours = KMeans(3, n_init=10, random_state=0).fit(x)
  assert same_partition(ours.labels_, theirs.labels_)
  assert same_partition(ours.predict(x[::-1]), theirs.labels_[::-1])
  order = [theirs.predict(center[None])[0] for center in ours.cluster_centers_]
  np.testing.assert_allclose(
    ours.cluster_centers_, theirs.cluster_centers_[order], rtol=0, atol=1e-3
  )
  again = KMeans(3, init=theirs.cluster_centers_).fit(x)
  np.testing.assert_array_equal(again.labels_, theirs.labels_)
  mean = x.mean(axis=0)
  for options in ({}, {'means_init': theirs.cluster_centers_}):
    far = GaussianMixture(3, random_state=0, **options).fit(x)
    options = {name: means - mean for name, means in options.items()}
    near = GaussianMixture(3, random_state=0, **options).fit(x - mean)
    np.testing.assert_array_equal(far.predict(x), near.predict(x - mean))
    close(far.means_ - mean, near.means_, atol=1e-3)
    close(far.score_samples(x), near.score_samples(x - mean))
    drawn, _ = far.sample(200)
    close(drawn - mean, near.sample(200)[0], atol=1e-3)


def test_rows_of_weight_zero_move_no_origin():
  x = np.concatenate([X.astype(np.float64), np.full((9, 3), 1e12)])
  weight = np.r_[np.ones(len(X)), np.zeros(9)]
  found = KMeans(3, random_state=0).fit(x, sample_weight=weight)
  expected = KMeans(3, random_state=0).fit(X.astype(np.float64))
  assert same_partition(found.labels_[: len(X)], expected.labels_)
  for options in ({'reg_covar': 0.1}, {'init_params': 'random'}):
    mixtures = [
      GaussianMixture(3, random_state=0, **options).fit(rows, sample_weight=w)
      for rows, w in ((x, weight), (x[: len(X)], None))
    ]
    spread = [np.sort(mixture.means_[:, 0]) for mixture in mixtures]
    if 'reg_covar' in options:
      close(*spread)
    assert np.abs(spread[0]).max() < 20


def test_random_shares_are_drawn_for_each_start():
  options = {'init_params': 'random', 'random_state': 0, 'max_iter': 300}
  one, many = (GaussianMixture(3, n_init=n, **options).fit(X) for n in (1, 8))
  assert many.lower_bound_ >= one.lower_bound_ - 1e-5


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_results_have_the_dtype_of_the_rows(dtype):
  x = X.astype(dtype)
  clusters, mixture = KMeans(3).fit(x), GaussianMixture(3).fit(x)
  found = clusters.cluster_centers_, clusters.transform(x), mixture.means_
  found += mixture.weights_, mixture.covariances_, mixture.precisions_
  found += mixture.predict_proba(x), mixture.score_samples(x)
  assert {array.dtype for array in found} == {np.dtype(dtype)}


def test_columns_keep_their_names():
  pandas = pytest.importorskip('pandas')
  frame = pandas.DataFrame(X, columns=['a', 'b', 'c'])
  found = (
    KMeans(3, n_init=2, random_state=0)
    .set_output(transform='pandas')
    .fit(frame)
  )
  assert found.feature_names_in_.tolist() == ['a', 'b', 'c']
  assert list(found.transform(frame)) == ['kmeans0', 'kmeans1', 'kmeans2']
  with pytest.warns(UserWarning, match='feature names'):
    found.predict(X)


def test_float64_and_lists_are_taken_without_a_warning():
  plain = KMeans(3, n_init=2, random_state=0).fit(X)
  found = clone(plain).fit(X.astype(np.float64))
  np.testing.assert_array_equal(found.labels_, plain.labels_)
  np.testing.assert_array_equal(found.predict(X.tolist()), plain.labels_)

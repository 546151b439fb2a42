"""Confidence: what it means, how it is kept, and that it holds."""

import jax
import numpy as np
import pytest
from models import KINDS, model_of
from point_sets import blobs

from jaxclust import gmm, kmeans, model, reliability, storage
from jaxclust.algorithms.assignment import MIXTURE, nearest_center
from jaxclust.methods import heads

SHAPE = (2, 1, 1)


def mixture_of(x, num_components=3):
  """A model that knows the mixture of points `[N, 2]`, as if of pixels."""
  options = {'num_components': num_components, 'num_restarts': 3, 'reg': 1e-3}
  recipe = {'image_shape': list(SHAPE), 'clusterer': 'gmm', 'method': ''}
  recipe |= {'clusterer_options': options | {'covariance': 'full'}}
  recipe |= {'manifold': {}, 'spread': {}}
  params = gmm.fit(jax.random.key(0), x, **options).params
  return model.assemble(recipe, clusters=params)


@pytest.fixture(scope='module')
def points():
  return blobs(num_points=600, num_features=2, num_clusters=3, spread=2.0)[0]


@pytest.fixture(scope='module')
def calibrated(points):
  return calibrate(mixture_of(points), points)


def calibrate(own, x):
  """A model with the confidence of points, and how well that holds."""
  own, judged, found = reliability.calibrate(own, x, {'train': own.judge(x)})
  np.testing.assert_array_equal(
    judged['train'].confidence, own.judge(x).confidence
  )
  return own, found


def test_others_keep_what_matches_one_to_one():
  labels = np.array([0, 0, 0, 1, 1, 2])
  others = np.array([[2, 2, 1, 1, 1, 0], [0, 0, 0, 0, 1, 2]])
  kept = reliability.kept_shares(labels, others, 3)
  np.testing.assert_array_equal(kept, [1, 1, 0.5, 0.5, 1, 1])


def test_a_curve_is_the_isotonic_regression():
  margin = np.array([3.0, 1.0, 2.0, 4.0])
  kept = np.array([0.2, 0.0, 0.8, 1.0])  # 2 and 3 pool
  knots, shares = reliability.fit_curve(margin, kept)
  expected = np.interp(knots, [1, 2, 3, 4], [0, 0.5, 0.5, 1])
  np.testing.assert_allclose(shares, expected, atol=1e-6)
  assert (np.diff(knots) > 0).all()


def test_equal_margins_have_one_confidence():
  knots, shares = reliability.fit_curve(np.zeros(8), np.arange(8) % 2)
  np.testing.assert_array_equal(knots, [0])
  np.testing.assert_array_equal(shares, [0.5])


def test_bins_are_means_of_images():
  found = reliability.in_bins(np.array([0.1, 0.15, 1.0]), np.array([0, 1, 1]))
  np.testing.assert_allclose(found.confidence, [0.125, 1])
  np.testing.assert_allclose(found.kept, [0.5, 1])
  np.testing.assert_array_equal(found.sizes, [2, 1])
  assert found.error == pytest.approx(2 / 3 * 0.375)


def test_confidence_is_the_share_that_fits_to_new_images_keep(
  points, calibrated
):
  own, found = calibrated
  judged = own.judge(points)
  others = []
  for seed in range(10, 30):  # drawn anew, and other starts
    drawn = np.random.default_rng(seed).integers(600, size=600)
    again = mixture_of(points[drawn])
    others.append(np.asarray(again.assign(points)))
  kept = reliability.kept_shares(judged.labels, np.array(others), 3)
  raw = own._replace(curve=None).judge(points).confidence
  before, after = (
    reliability.in_bins(c, kept).error for c in (raw, judged.confidence)
  )
  assert after < min(0.07, before)
  assert found.error < 0.1


def test_confidence_rises_with_the_margin(points, calibrated):
  judged = calibrated[0].judge(points)
  order = np.argsort(judged.margin)
  assert (np.diff(judged.confidence[order]) >= 0).all()
  assert judged.confidence.min() < 0.7
  assert judged.confidence.max() > 0.95


def test_it_is_kept_with_the_model(tmp_path, points, calibrated):
  own, _ = calibrated
  storage.save(tmp_path, own)
  (tmp_path / 'summary.json').write_text('{}')
  loaded = storage.load(tmp_path)
  for name, array in own.judge(points)._asdict().items():
    np.testing.assert_array_equal(array, getattr(loaded.judge(points), name))


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_model_has_margins(kind):
  own = model_of(kind)
  x = np.random.default_rng(0).normal(size=(50, own.centers.shape[1]))
  judged = own.judge(x.astype(np.float32))
  assert judged.margin.shape == (50,)
  assert np.isfinite(judged.margin).all()
  assert (judged.margin >= 0).all()


def test_a_margin_is_a_ratio_of_distances_or_shares(points):
  centers = np.array([[0, 0], [4, 0]], np.float32)
  near = np.array([[1, 0], [0, 0]], np.float32)
  found = nearest_center('euclidean').assign(centers, near)
  np.testing.assert_allclose(found.margin[0], np.log(3), rtol=1e-5)
  assert found.margin[1] > 80  # at a center
  params = mixture_of(points).clusters
  found = MIXTURE.assign(params, points)
  shares = np.sort(np.asarray(gmm.responsibilities(params, points)), axis=1)
  expected = np.log(shares[:, 2] / np.maximum(shares[:, 1], 1e-37))
  some = expected < 80
  np.testing.assert_allclose(found.margin[some], expected[some], atol=1e-3)


def test_margins_of_a_mixture_go_on_where_shares_vanish(points):
  params = mixture_of(points).clusters
  far = np.array([[1e3, 0], [2e3, 0]], np.float32)
  near, farther = MIXTURE.assign(params, far).margin
  assert 100 < near < farther


def test_parts_of_a_method_are_asked_or_fits_where_there_are_none():
  own = model_of('committee')
  x = np.random.default_rng(0).normal(size=(200, own.centers.shape[1]))
  x = x.astype(np.float32)
  opinions = np.asarray(own.method.opinions(own.params, x))
  assert opinions.shape == (2, 200)
  _, found = calibrate(own, x)
  kept = reliability.kept_shares(own.judge(x).labels, opinions, 3)
  assert np.average(found.kept, weights=found.sizes) == kept[1::2].mean()
  alone = model_of('dec')
  assert alone.method.opinions is None
  none = alone.method._replace(
    opinions=lambda params, x: opinions[:0, : len(x)]
  )
  x = x[:, : alone.centers.shape[1]]
  for own in (alone, alone._replace(method=none)):
    assert calibrate(own, x)[0].curve is not None


def test_too_few_images_leave_confidence_as_it_was():
  x = np.arange(6, dtype=np.float32).reshape(3, 2)
  recipe = {'image_shape': list(SHAPE), 'clusterer': 'kmeans', 'method': ''}
  recipe |= {'clusterer_options': {'num_clusters': 3}}
  recipe |= {'manifold': {}, 'spread': {}}
  fitted = kmeans.fit(jax.random.key(0), x, num_clusters=3)
  own = model.assemble(recipe, clusters=fitted.centers)
  same, found = calibrate(own, x)
  assert found is None
  assert same.curve is None


def test_heads_that_do_not_answer_have_opinions():
  head = heads.TwoLayers(3)
  params = heads.init(head, jax.random.key(0), num_heads=4, size=5)
  params |= {'choice': np.float32(2)}
  x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
  found = heads.opinions(head, params, x)
  logits = np.asarray(heads.logits(head, params['heads'], x))
  np.testing.assert_array_equal(found, logits[[0, 1, 3]].argmax(axis=2))

"""The autoencoder as an estimator: scikit-learn's checks, rows as images."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxclust import encoding, gmm, networks, plans, training
from jaxclust.defaults import TRAINING
from jaxclust.errors import InputError
from jaxclust.estimators import ConvAutoencoder, GaussianMixture
from jaxclust.methods import METHODS

pytestmark = pytest.mark.usefixtures('light_compiler')

IMAGES = sklearn.datasets.load_digits().data[:120].astype(np.float32)
SMALL = ConvAutoencoder(
  (8, 8), features=(4, 2), epochs=3, batch_size=32, learning_rate=1e-2,
  random_state=3,
)  # fmt: skip


@pytest.fixture
def dense(monkeypatch):
  """Dense layers, whose many sizes compile sooner than those of
  convolutions."""
  build = functools.partial(networks.build, name='mlp')
  monkeypatch.setattr(networks, 'build', build)


def close(a, b, rtol=1e-4, atol=1e-4):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.slow
@pytest.mark.usefixtures('dense')
@pytest.mark.filterwarnings('ignore::sklearn.exceptions.SkipTestWarning')
@parametrize_with_checks(
  [ConvAutoencoder(features=(2,), epochs=1, batch_size=64)]
)
def test_the_estimator_is_what_scikit_learn_asks_of_one(estimator, check):
  check(estimator)


def test_an_autoencoder_is_the_function():
  found = clone(SMALL).fit(IMAGES)
  images = jnp.asarray(IMAGES / 16).reshape(-1, 8, 8, 1)
  own = {'num_epochs': 3, 'batch_size': 32, 'learning_rate': 1e-2}
  method, keys = METHODS['autoencoder'], jax.random.key(3)[None]
  plan = plans.plan(method, found.model_, images, None, keys, TRAINING | own)
  *_, last = training.run(plan, training.blank(plan))
  assert found.loss_curve_[-1] == last.losses['train_loss'][0]
  own = jax.tree.map(lambda a: a[0], training.final_params(plan, last.course))
  codes = encoding.embed(plan.method, own, images, 32)
  np.testing.assert_array_equal(found.transform(IMAGES), codes)
  assert found.transform(IMAGES).shape == (120, 8)


def test_codes_do_not_depend_on_the_units_of_the_rows():
  plain = clone(SMALL).fit(IMAGES)
  moved = clone(SMALL).fit(IMAGES * 8 - 3)
  close(moved.transform(IMAGES * 8 - 3), plain.transform(IMAGES))
  close(moved.score(IMAGES * 8 - 3), 64 * plain.score(IMAGES), rtol=1e-3)
  close(moved.loss_curve_, plain.loss_curve_)
  decoded = moved.inverse_transform(moved.transform(IMAGES * 8 - 3))
  close(decoded, plain.inverse_transform(plain.transform(IMAGES)) * 8 - 3, 0, 1)
  assert decoded.shape == IMAGES.shape
  assert decoded.dtype == np.float32
  bytes_ = clone(SMALL).fit(IMAGES.astype(np.uint8))
  np.testing.assert_array_equal(bytes_.loss_curve_, plain.loss_curve_)


def test_the_score_is_the_negative_error_of_reconstructions():
  rows = IMAGES * 5 + 7
  found = clone(SMALL).fit(rows)
  assert found.loss_curve_[0] > found.loss_curve_[-1] > 0
  for x in (rows, IMAGES[:, ::-1] * 6):
    decoded = found.inverse_transform(found.transform(x))
    close(found.score(x), -np.square(decoded - x).mean())


def test_rows_are_lines_unless_a_shape_is_given():
  found = ConvAutoencoder(features=(2,), epochs=1).fit(IMAGES[:20, :10])
  assert found.model_.image_shape == (1, 10, 1)
  assert found.transform(IMAGES[:20, :10]).shape == (20, 10)
  names = found.get_feature_names_out()
  assert names.tolist() == [f'convautoencoder{i}' for i in range(10)]
  with pytest.raises(InputError, match='X has 5 features: it must have the 10'):
    found.inverse_transform(np.ones((2, 5)))


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((28, 28), r'image_shape is \(28, 28\): .* product of 64, as X has 64'),
    ((64,), r'image_shape is \(64,\): it must be \(H, W\) or \(H, W, C\)'),
    ((8, -8), 'each of image_shape is -8'),
    ((8, 8.0), 'each of image_shape is 8.0'),
  ],
)
def test_a_shape_that_rows_do_not_have_is_named(shape, message):
  with pytest.raises(InputError, match=message) as caught:
    ConvAutoencoder(shape).fit(IMAGES)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'epochs': 0}, '^epochs is 0'),
    ({'features': (4, 0)}, '^each of features is 0'),
    ({'batch_size': 0}, '^batch_size is 0'),
  ],
)
def test_a_mistake_is_reported_in_names_of_the_estimator(options, message):
  with pytest.raises(InputError, match=message):
    ConvAutoencoder(**options).fit(IMAGES)


def test_a_network_that_is_not_finite_is_an_error():
  with pytest.raises(InputError, match=r'lower learning_rate.* 1e\+38'):
    clone(SMALL).set_params(learning_rate=1e38).fit(IMAGES)


def test_what_is_not_fitted_says_so():
  for name in ('transform', 'inverse_transform', 'score'):
    with pytest.raises(NotFittedError):
      getattr(ConvAutoencoder(), name)(IMAGES)


def test_copies_and_pickles_are_alike():
  estimator = clone(SMALL).set_params(features=[4, 2]).fit(IMAGES)
  again = pickle.loads(pickle.dumps(estimator))
  np.testing.assert_array_equal(
    again.transform(IMAGES), estimator.transform(IMAGES)
  )
  bare = clone(estimator)
  assert bare.get_params() == estimator.get_params()
  assert not any(name.endswith('_') for name in vars(bare))


@pytest.mark.slow
def test_a_mixture_on_codes_is_a_pipeline():
  mixture = GaussianMixture(3, covariance_type='diag', random_state=2)
  pipeline = make_pipeline(clone(SMALL), mixture)
  labels = pipeline.fit_predict(IMAGES)
  codes = clone(SMALL).fit_transform(IMAGES)
  result = gmm.fit(
    jax.random.key(2), codes, num_components=3, covariance='diag'
  )
  np.testing.assert_array_equal(labels, gmm.predict(result.params, codes))
  np.testing.assert_array_equal(pipeline.predict(IMAGES), labels)
  close(pipeline.score(IMAGES), result.log_likelihood)

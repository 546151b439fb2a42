"""Checks of options, points and weights, and how `inputs` places these."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import ROOT

from jaxclust import checks, gmm, inputs, kmeans, selection
from jaxclust.errors import InputError
from jaxclust.inputs import bucket, describe, place


@pytest.mark.parametrize('value', [0, -1, 2.5, 'ten', True, None])
def test_a_count_must_be_a_whole_number(value):
  with pytest.raises(InputError, match='num_clusters is'):
    checks.check_count('num_clusters', value)
  assert checks.check_count('num_clusters', np.int64(3)) == 3


@pytest.mark.parametrize('value', [-1.0, np.nan, np.inf, 'x', None, True])
def test_a_number_must_be_finite_and_not_negative(value):
  with pytest.raises(InputError, match='tol is'):
    checks.check_number('tol', value)
  checks.check_number('tol', 0)
  checks.check_number('tol', np.float32(1e-4))


@pytest.mark.parametrize(
  ('x', 'message'),
  [
    (np.ones(3), r'shape \(3,\)'),
    (np.ones((0, 2)), r'shape \(0, 2\)'),
    (np.array([['a']]), 'dtype'),
    (np.ones((2, 2), np.complex64), 'dtype complex64'),
    (np.array([[1, 2], [np.nan, 4]]), '1 values .* row 1, column 0'),
    (np.array([[1, np.inf], [np.nan, 4]]), '2 values .* row 0, column 1'),
    (
      np.full((2, 2), 1e19, np.float32),
      'reaches 1e.19: beyond .* overflow float32',
    ),
  ],
)
@pytest.mark.filterwarnings('ignore:x is float64')
def test_points_that_cannot_be_used_are_named(x, message):
  with pytest.raises(InputError, match=message):
    describe(place(x))


FAR = np.array([[n] for n in (*range(10), *range(2**32, 2**32 + 10))])


@pytest.fixture(params=['small', 'large', 'stream'])
def size(request, monkeypatch):
  """How an array of NumPy's is placed."""
  if request.param != 'small':
    monkeypatch.setattr(inputs, 'SMALL', 0)
    monkeypatch.setattr(
      inputs, '_is_large', lambda x: request.param == 'stream'
    )


@pytest.mark.usefixtures('size')
@pytest.mark.parametrize(
  'x',
  [FAR, FAR.astype('>i8'), FAR.astype('>f4'), FAR.astype(object)],
  ids=['int64', 'big-endian', 'big-endian float', 'object'],
)
@pytest.mark.filterwarnings('ignore:x is float64')
def test_numbers_of_any_width_and_order_are_read(x):
  """JAX would wrap integers at 2**32, and refuse the rest."""
  key, starts = jax.random.key(0), FAR[[0, -1]]
  for init in ('k-means++', starts, starts.astype(object)):
    found = kmeans.fit(key, x, num_clusters=2, init=init)
    np.testing.assert_array_equal(found.counts, [10, 10])
    labels = np.asarray(kmeans.predict(starts, x))
    np.testing.assert_array_equal(labels, [0] * 10 + [1] * 10)
  means = np.sort(np.ravel(found.centers))
  np.testing.assert_allclose(means, [4.5, 2**32 + 4.5], rtol=0, atol=512)


def test_weights_of_any_width_are_read():
  x, listed = np.float32([[0], [1]]), [2**32 + 1, 1]
  for weight in (listed, np.array(listed), np.array(listed, object)):
    found = kmeans.fit(
      jax.random.key(0), x, num_clusters=1, sample_weight=weight
    )
    np.testing.assert_allclose(found.centers, [[2.0**-32]], rtol=1e-5)


@pytest.mark.parametrize(
  'x', [np.int64([[1_700_000_000 + n] for n in range(50)]), 1e8 + np.eye(9)]
)
@pytest.mark.filterwarnings('ignore:x is float64')
def test_numbers_that_float32_cannot_tell_apart_are_an_error(x):
  with pytest.raises(InputError, match='more digits than float32 has'):
    kmeans.fit(jax.random.key(0), x, num_clusters=2)
  with jax.enable_x64(True):
    assert place(x).x.dtype == jnp.float64
  place(x - x.mean())


@pytest.mark.parametrize(
  'x',
  [
    np.full((9, 2), 1e9 + 0.1),
    1e4 + np.eye(9),
    np.c_[np.full(9, 1.7e9 + 10), np.arange(9) / 9],  # rounded alike
  ],
)
@pytest.mark.filterwarnings('ignore:x is float64')
def test_rounding_that_tells_all_rows_apart_is_none(x):
  checks.check_digits(x, np.dtype(np.float32))


@pytest.mark.parametrize(
  ('x', 'message'),
  [
    ([[1, 2], [3]], 'x is no array'),
    (np.array([[1], ['b']], object), 'x has objects that are no numbers'),
    (np.array([[1j]]), 'x is of dtype complex128'),
    ([['a']], 'x is of dtype <U1'),
  ],
)
def test_what_is_not_numbers_is_named(x, message):
  with pytest.raises(InputError, match=message):
    place(x)
  with pytest.raises(InputError, match=message.replace('x ', 'init ', 1)):
    checks.check_centers('init', x, None, 1)
  with pytest.raises(InputError, match=message.replace('x ', 'sample_weight ')):
    checks.check_weights(x, 2, np.float32)


@pytest.mark.parametrize(
  'key', [0, None, np.zeros(2), jax.random.split(jax.random.key(0))]
)
def test_a_key_must_be_one_of_jax(key):
  x = np.float32([[0], [1], [5]])
  for draw in (
    lambda: kmeans.fit(key, x, num_clusters=2),
    lambda: kmeans.fit_minibatch(key, x, num_clusters=2),
    lambda: kmeans.start(key, x, num_clusters=2, init=x[:2]),
    lambda: gmm.fit(key, x, num_components=2, init='random'),
    lambda: next(selection.sweep(key, x, num_clusters=(2,))),
  ):
    with pytest.raises(InputError, match='it must be one random key'):
      draw()
  checks.check_key(jax.random.PRNGKey(0))


@pytest.mark.parametrize(
  ('weight', 'message'),
  [
    ([0, 0], 'sums to 0'),
    ([1, -2], r'sample_weight\[1\] is -2'),
    ([np.nan, 1], r'sample_weight\[0\] is nan'),
    ([1, np.inf], r'sample_weight\[1\] is inf'),
    ([1, 1, 1], r'shape \(3,\)'),
  ],
)
def test_weights_that_cannot_be_used_are_named(weight, message):
  with pytest.raises(InputError, match=message):
    place(np.ones((2, 2), np.float32), np.array(weight))


def test_float64_is_cast_with_a_warning():
  with pytest.warns(UserWarning, match='float64'):
    rows = place(np.ones((2, 2)))
  assert rows.x.dtype == jnp.float32
  assert rows.weight.dtype == jnp.float32


def test_float64_stays_where_it_is_enabled():
  with jax.enable_x64(True):
    rows = place(np.ones((2, 2)))
    assert rows.x.dtype == jnp.float64
    assert rows.weight.dtype == jnp.float64


def test_small_arrays_are_padded_to_few_sizes():
  sizes = {bucket(n, 64) for n in range(1, 1025)}
  assert sizes == {64, 96, 128, 192, 256, 384, 512, 768, 1024}
  assert all(n <= bucket(n, 64) < max(65, 1.5 * n) for n in range(1, 1025))
  rows = place(np.ones((300, 2), np.float32))
  assert rows.shape == (384, 2)
  assert rows.num_padded == 84
  np.testing.assert_array_equal(rows.weight, np.arange(384) < 300)
  assert place(np.ones((70, 2), np.float32)).shape == (256, 2)
  assert place(np.ones((2, 2**15), np.float32)).shape == (2, 2**15)


def test_large_arrays_are_not_padded():
  rows = place(np.ones((2**19 + 1, 2), np.float32))
  assert rows.shape == (2**19 + 1, 2)
  assert rows.num_padded == 0


FORK = """
import os, warnings
import numpy as np
from jaxclust.errors import RunError
from jaxclust.estimators import KMeans

warnings.simplefilter('ignore')  # JAX warns of forks
x = np.float32([[0], [1], [5]])
first = os.fork()
if not first:
  KMeans(2).fit(x)  # nothing had been done before
  os._exit(0)
assert os.waitpid(first, 0)[1] == 0
fitted = KMeans(2).fit(x)
second = os.fork()
if not second:
  try:
    fitted.predict(x)
  except RunError as error:
    os._exit('spawn' not in str(error))
  os._exit(2)
assert os.waitpid(second, 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there are no forks')
def test_a_fork_says_that_it_would_hang():
  command = [sys.executable, '-c', FORK]
  subprocess.run(command, check=True, cwd=ROOT, timeout=120)

"""Checks of options, points and weights, and how `inputs` places these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import checks
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

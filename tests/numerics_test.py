"""Blocks, frames, distances, draws, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import numerics
from jaxclust.numerics import InputError


def test_blocks_see_every_row_once_and_write_every_row():
  rows = jnp.arange(10.0)

  def fn(total, block, fresh):
    return total + jnp.where(fresh, block, 0).sum(), 2 * block

  for block_size in (1, 3, 4, 10, 99):
    total, doubled = numerics.scan_blocks(fn, jnp.zeros(()), rows, block_size)
    assert total == 45
    np.testing.assert_array_equal(doubled, 2 * rows)


@pytest.mark.parametrize('share', [0, 0.3, 1])
def test_visits_see_every_wanted_row_once(share):
  wanted = np.random.default_rng(0).uniform(size=50) < share

  def fn(seen, rows, fresh):
    return seen.at[jnp.where(fresh, rows, 50)].add(1, mode='drop')

  for block_size in (1, 7, 50, 99):
    seen = numerics.visit_rows(
      fn, jnp.zeros(50, jnp.int32), jnp.asarray(wanted), block_size
    )
    np.testing.assert_array_equal(seen, wanted)


def test_blocks_keep_to_their_budget():
  assert numerics.block_rows(10, 784) == 10
  on_cpu = jax.default_backend() == 'cpu'
  budget = 2**20 if on_cpu else 2**25
  assert 0.9 * budget < numerics.block_rows(10**6, 784) * 784 <= budget
  assert numerics.block_rows(10**6, 10**9) == 256


def test_a_frame_centers_and_scales_data_of_any_offset_and_scale():
  x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
  weight = jnp.ones(500)
  for offset in (0.0, 1e4, -1e5):
    for scale in (1e-6, 1.0, 1e6):
      data = jnp.asarray((x + np.float32(offset)) * np.float32(scale))
      frame = numerics.find_frame(data, weight, 64)
      inside = frame.enter(data)
      limit = 1e-6 * (1 + abs(offset))  # what float32 holds of the offset
      np.testing.assert_allclose(inside.mean(axis=0), 0, atol=limit)
      np.testing.assert_allclose(inside.var(axis=0).mean(), 1, rtol=1e-3)
      back = (frame.leave(inside) - data) / frame.scale
      np.testing.assert_allclose(back, 0, atol=limit)


def test_rows_of_any_length_enter_the_sphere():
  x = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
  sphere = numerics.Sphere(jnp.float32(0.5))
  inside = sphere.enter(x)
  np.testing.assert_allclose(inside[:3], [[1.2, 1.6]] * 3, rtol=1e-6)
  np.testing.assert_array_equal(inside[3], [0, 0])
  np.testing.assert_allclose(sphere.leave(inside[:1]), [[0.6, 0.8]], rtol=1e-6)


def test_a_frame_weighs_its_rows():
  x = jnp.array([[0.0], [2.0], [1e6]])
  frame = numerics.find_frame(x, jnp.array([3.0, 1.0, 0.0]), 2)
  np.testing.assert_allclose(frame.offset, [0.5])
  np.testing.assert_allclose(frame.scale, np.sqrt(0.75), rtol=1e-6)


def test_equal_rows_have_a_frame_of_scale_one():
  frame = numerics.find_frame(jnp.full((4, 2), 7.0), jnp.ones(4), 4)
  np.testing.assert_array_equal(frame.offset, [7, 7])
  assert frame.scale == 1


def test_distances_are_those_of_differences_and_zero_to_oneself():
  x = jax.random.normal(jax.random.key(0), (50, 784))
  norms = jnp.square(x).sum(axis=1)
  found = numerics.squared_distances(x, x[:20], norms).T
  exact = np.square(np.asarray(x)[:, None] - np.asarray(x)[None, :20])
  np.testing.assert_allclose(found, exact.sum(axis=-1), rtol=1e-5)
  np.testing.assert_array_equal(np.diagonal(found), np.zeros(20))


def test_the_nearest_is_the_first_of_equals():
  squared = jnp.array([[[3.0, 1.0], [2.0, 1.0], [2.0, 5.0]]])  # [R, K, B]
  least, labels = numerics.nearest(squared)
  np.testing.assert_array_equal(least, [[2, 1]])
  np.testing.assert_array_equal(labels, [[1, 0]])
  found = numerics.members(jnp.array([[1, -1]]), 2, jnp.float32)
  np.testing.assert_array_equal(found, [[0, 0], [1, 0]])


def test_the_best_is_the_smallest_finite_score():
  scores = jnp.array([jnp.nan, 3.0, 2.0, -jnp.inf, jnp.nan])
  assert numerics.best_finite(scores) == 2


def test_ids_go_with_the_content_of_rows():
  x = jax.random.randint(jax.random.key(0), (200, 5), 0, 3).astype(jnp.float32)
  weight = jnp.ones(200)
  ids = numerics.content_ids(x, weight, 64)
  assert len(np.unique(ids)) == 200
  order = jax.random.permutation(jax.random.key(1), 200)
  shuffled = numerics.content_ids(x[order], weight, 7)
  np.testing.assert_array_equal(np.sort(ids), np.sort(shuffled))
  rows = {tuple(r) for r in np.asarray(x)}
  for row in list(rows)[:20]:
    same = (np.asarray(x) == row).all(axis=1)
    same_shuffled = (np.asarray(x[order]) == row).all(axis=1)
    assert set(ids[same].tolist()) == set(shuffled[same_shuffled].tolist())


def test_ids_tell_rows_apart_that_differ_beyond_float32():
  with jax.enable_x64(True):
    x = 1 + 1e-12 * jnp.arange(8.0)[:, None]
    order = jnp.array([3, 0, 7, 1, 6, 5, 2, 4])
    weight = jnp.ones(8)
    ids = numerics.content_ids(x, weight, 3)
    moved = numerics.content_ids(x[order], weight, 3)
    assert len(set(ids.tolist())) == 8
    np.testing.assert_array_equal(moved, ids[order])


def test_a_negative_zero_is_a_zero():
  one = jnp.ones(1)
  plus = numerics.content_ids(jnp.array([[0.0, 1.0]]), one, 1)
  minus = numerics.content_ids(jnp.array([[-0.0, 1.0]]), one, 1)
  np.testing.assert_array_equal(plus, minus)


def test_rows_of_weight_zero_leave_the_ids_of_their_equals_alone():
  x = jnp.ones((2, 3))
  alone = numerics.content_ids(x, jnp.ones(2), 2)
  padded = numerics.content_ids(jnp.ones((4, 3)), jnp.array([0.0, 1, 0, 1]), 4)
  assert set(alone.tolist()) == set(padded[jnp.array([1, 3])].tolist())


def test_draws_are_in_proportion_to_mass():
  mass = jnp.array([0.0, 1.0, 2.0, 5.0, -1.0])
  ids = numerics.content_ids(jnp.arange(5.0)[:, None], jnp.ones(5), 5)
  seeds = jax.random.bits(jax.random.key(0), (20_000,), jnp.uint32)
  draw = jax.vmap(lambda s: jnp.argmin(numerics.arrivals(s, ids, mass)))
  share = np.bincount(draw(seeds), minlength=5) / 20_000
  np.testing.assert_allclose(share, [0, 1 / 8, 2 / 8, 5 / 8, 0], atol=0.015)


def test_where_all_mass_is_zero_rows_of_negative_mass_are_never_drawn():
  ids = jnp.arange(3, dtype=jnp.uint32)
  mass = jnp.array([-1.0, 0.0, -1.0])
  for seed in range(20):
    times = numerics.arrivals(jnp.uint32(seed), ids, mass)
    assert jnp.argmin(times) == 1


@pytest.mark.parametrize('value', [0, -1, 2.5, 'ten', True, None])
def test_a_count_must_be_a_whole_number(value):
  with pytest.raises(InputError, match='num_clusters is'):
    numerics.check_count('num_clusters', value)
  assert numerics.check_count('num_clusters', np.int64(3)) == 3


@pytest.mark.parametrize('value', [-1.0, np.nan, np.inf, 'x', None, True])
def test_a_number_must_be_finite_and_not_negative(value):
  with pytest.raises(InputError, match='tol is'):
    numerics.check_number('tol', value)
  numerics.check_number('tol', 0)
  numerics.check_number('tol', np.float32(1e-4))


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
    numerics.check_points(x)


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
    numerics.check_points(np.ones((2, 2), np.float32), np.array(weight))


def test_float64_is_cast_with_a_warning():
  with pytest.warns(UserWarning, match='float64'):
    x, weight = numerics.check_points(np.ones((2, 2)))
  assert x.dtype == jnp.float32
  assert weight.dtype == jnp.float32


def test_float64_stays_where_it_is_enabled():
  with jax.enable_x64(True):
    x, weight = numerics.check_points(np.ones((2, 2)))
    assert x.dtype == jnp.float64
    assert weight.dtype == jnp.float64

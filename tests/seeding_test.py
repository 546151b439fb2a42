"""Draws of rows, seeds of clusters, and the distances that these need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from point_sets import blobs, sharded

from jaxclust import kmeans
from jaxclust.algorithms import seeding
from jaxclust.algorithms.distances import (
  nearest,
  one_hot,
  squared_distances,
  sums_by_label,
)
from jaxclust.algorithms.seeding import arrivals, mix, number_rows, sample_rows
from jaxclust.inputs import describe, place
from jaxclust.rows import Rows

KEY = jax.random.key(0)


# Distances


def test_distances_are_those_of_differences_and_zero_to_oneself():
  x = jax.random.normal(KEY, (50, 784))
  found = squared_distances(x, x[:20]).T
  exact = np.square(np.asarray(x)[:, None] - np.asarray(x)[None, :20])
  np.testing.assert_allclose(found, exact.sum(axis=-1), rtol=1e-5)
  np.testing.assert_array_equal(np.diagonal(found), np.zeros(20))


def test_a_product_that_blurs_distances_makes_way_for_differences():
  x = 1e3 + jax.random.uniform(KEY, (5000, 30))
  centers = x[:20]
  assert x.size * len(centers) > 2**21  # too much for differences alone
  found = squared_distances(x, centers).T
  exact = np.square(np.asarray(x)[:, None] - np.asarray(centers)[None])
  np.testing.assert_allclose(found, exact.sum(axis=-1), rtol=1e-4)


def test_centers_that_are_not_in_use_are_infinitely_far():
  x = jax.random.normal(KEY, (50, 4))
  active = jnp.array([True, False, True])
  found = squared_distances(x, x[:3], active)
  assert jnp.isinf(found[1]).all()
  assert jnp.isfinite(found[::2]).all()


def test_the_nearest_is_the_first_of_equals():
  part = jnp.array([[[3.0, 1.0], [2.0, 1.0], [2.0, 5.0]]])  # [R, K, B]
  least, labels = nearest(part, jnp.array([0.5, -3.0]))
  np.testing.assert_array_equal(least, [[2.5, 0]])
  np.testing.assert_array_equal(labels, [[1, 0]])
  found = one_hot(jnp.array([[1, -1]]), 2, jnp.float32)
  np.testing.assert_array_equal(found, [[0, 0], [1, 0]])


def test_rows_at_centers_do_not_make_way_for_differences():
  x = jax.random.normal(KEY, (3000, 32))
  found = squared_distances(x, x[:100])
  other = squared_distances(x[::-1], x[:100])[:, ::-1]  # products too
  assert 0 < np.diagonal(found).max() < 1e-4
  np.testing.assert_allclose(found, other, atol=1e-3)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_sums_by_label_are_those_of_a_loop(monkeypatch, backend):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  rng = np.random.default_rng(0)
  labels, x = rng.integers(-1, 5, (2, 3000)), rng.normal(size=(3000, 3))
  weight = rng.uniform(size=3000)
  labels[0, :9] = 5  # as 5 of 5 labels is none
  inside = labels[:, None] == np.arange(5)[None, :, None]
  for values in (weight, x):
    found = sums_by_label(jnp.asarray(labels), 5, jnp.float32(values))
    np.testing.assert_allclose(found, inside @ values, rtol=1e-4, atol=1e-4)


def test_a_long_sum_keeps_its_digits():
  x = jnp.full((2**19, 1), 1.01)
  labels = jnp.zeros((1, len(x)), jnp.int32)
  sums = sums_by_label(labels, 2, x)
  np.testing.assert_allclose(sums[0, 0], 1.01 * len(x), rtol=1e-4)


# Draws


def test_bits_are_spread_one_to_one():
  numbers = jnp.arange(2**16, dtype=jnp.uint32)
  mixed = np.asarray(mix(numbers))
  assert len(np.unique(mixed)) == 2**16
  flipped = np.asarray(mix(numbers ^ jnp.uint32(1))) ^ mixed
  ones = np.unpackbits(flipped.view(np.uint8)).mean()
  assert abs(ones - 0.5) < 0.01


def test_draws_are_in_proportion_to_mass():
  mass = jnp.array([0.0, 1.0, 2.0, 5.0, -1.0])
  seeds = jax.random.bits(KEY, (20_000,), jnp.uint32)
  numbers = jnp.arange(5)
  draw = jax.vmap(lambda s: jnp.argmin(arrivals(s, numbers, mass)))
  share = np.bincount(draw(seeds), minlength=5) / 20_000
  np.testing.assert_allclose(share, [0, 1 / 8, 2 / 8, 5 / 8, 0], atol=0.015)


def test_where_all_mass_is_zero_rows_of_negative_mass_are_never_drawn():
  mass = jnp.array([-1.0, 0.0, -1.0])
  for seed in range(20):
    times = arrivals(jnp.uint32(seed), jnp.arange(3), mass)
    assert jnp.argmin(times) == 1


def test_rows_of_weight_zero_leave_the_numbers_of_others_alone():
  weight = jnp.array([0.0, 1, 0, 2, 1])
  numbers = number_rows(Rows(jnp.ones((5, 1)), weight))
  np.testing.assert_array_equal(numbers[weight > 0], [1, 2, 3])


def places_of(x, weight):
  yield place(x, weight)
  yield place(x, weight, block_size=7)
  yield place(sharded(x), weight)
  yield Rows(x, weight, block_size=7)
  twice = np.stack([0 * weight, weight], axis=1).ravel()
  yield place(np.repeat(x, 2, axis=0), twice)


def test_a_sample_is_of_different_rows_and_the_same_wherever_they_lie():
  x = np.arange(50, dtype=np.float32)[:, None]
  weight = (np.arange(50) % 5 > 0).astype(np.float32)
  samples = []
  for rows in places_of(x, weight):
    rows = describe(rows)
    sample = sample_rows(jnp.uint32(3), rows, 20)
    assert (sample.weight == 1).all()
    samples.append(sample.x[:, 0])
  for sample in samples:
    np.testing.assert_allclose(sample, samples[0], atol=1e-4)
  drawn = np.round(np.asarray(samples[0])).astype(int)
  assert len(set(drawn)) == 20
  assert weight[drawn].all()


def test_a_sample_of_more_than_all_rows_is_all_of_them():
  x = np.arange(50, dtype=np.float32)[:, None]
  weight = (np.arange(50) < 30).astype(np.float32)
  rows = describe(place(x, weight))
  sample = sample_rows(jnp.uint32(3), rows, 60)
  assert sample.weight.sum() == 30
  drawn = sample.x[np.asarray(sample.weight) > 0]
  np.testing.assert_allclose(np.sort(drawn[:, 0]), np.arange(30), atol=1e-4)


# Seeds of clusters


def test_seeds_fall_into_different_blobs():
  x, truth = blobs(num_clusters=6, spread=0.05)
  state = kmeans.start(KEY, x, num_clusters=6, num_restarts=4)
  for run in kmeans.centers_of_runs(state):
    seeds = np.square(x[:, None] - np.asarray(run)[None]).sum(-1).argmin(0)
    np.testing.assert_allclose(x[seeds], run, atol=1e-4)
    assert len(set(truth[seeds])) == 6


def test_trials_whose_distances_are_kept_draw_the_same(monkeypatch):
  rows = describe(place(blobs(num_clusters=6)[0], None))
  seeds, draws = jnp.arange(3, dtype=jnp.uint32), []
  for share in (0, np.inf):
    monkeypatch.setattr(seeding, '_KEPT_SHARE', share)
    draw = jax.jit(functools.partial(seeding._plus_plus, size=6))
    draws.append(draw(seeds, rows, 6))
  np.testing.assert_array_equal(*draws)


def test_random_seeds_are_different_rows():
  x = np.arange(12, dtype=np.float32).reshape(6, 2)
  state = kmeans.start(KEY, x, num_clusters=6, init='random', num_restarts=3)
  for run in kmeans.centers_of_runs(state):
    np.testing.assert_allclose(np.sort(run[:, 0]), x[:, 0], atol=1e-5)


def test_greedy_seeding_is_as_good_as_scikit_learns():
  x, _ = blobs(num_points=1000, num_clusters=20, num_features=2)
  ours = kmeans.start(KEY, x, num_clusters=20, num_restarts=30)
  theirs = [
    np.square(
      x[:, None] - sklearn.cluster.kmeans_plusplus(x, 20, random_state=s)[0]
    ).sum(-1).min(1).sum()
    for s in range(30)
  ]  # fmt: skip
  ours = np.asarray(ours.objective * np.square(ours.frame.scale))
  assert abs(ours.mean() / np.mean(theirs) - 1) < 0.1


def test_many_seeds_in_two_rounds_are_as_good_as_one_by_one():
  x, _ = blobs(num_points=2000, num_clusters=60, seed=1)
  one_by_one, in_rounds = (
    kmeans.start(KEY, x, num_clusters=60, init=init).objective
    for init in ('k-means++', 'k-means||')
  )
  assert in_rounds.mean() < 1.2 * one_by_one.mean()
  assert len(set(in_rounds.tolist())) == 10


@pytest.mark.parametrize('init', ['k-means++', 'random'])
def test_a_restart_draws_the_same_among_others(init):
  x, _ = blobs()
  few, many = (
    kmeans.start(KEY, x, num_clusters=4, num_restarts=n, init=init)
    for n in (2, 5)
  )
  np.testing.assert_array_equal(many.params.centers[:2], few.params.centers)

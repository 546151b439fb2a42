"""Tiles against NumPy in float64: interpreted here, compiled on a GPU."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import kmeans
from jaxclust.algorithms import distances, tiles
from jaxclust.algorithms.lloyd import LLOYD, Clusters
from jaxclust.errors import InputError


@pytest.fixture
def with_tiles(monkeypatch):
  """Makes programs of tiles, which JAX interprets."""
  monkeypatch.setattr(tiles, '_has_tensor_cores', lambda: True)
  monkeypatch.setattr(tiles, 'on_cuda', lambda tiled, _, *args: tiled(*args))
  for name in ('nearest', 'sums'):
    interpreted = functools.partial(getattr(tiles, name), interpret=True)
    monkeypatch.setattr(tiles, name, interpreted)
  monkeypatch.setattr(distances, '_FEW_NUMBERS', 0)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')


def drawn(num_rows, num_features, num_centers, num_runs):
  generator = np.random.default_rng(0)
  x = generator.normal(size=(num_rows, num_features)).astype(np.float32)
  shape = num_runs, num_centers, num_features
  return x, generator.normal(size=shape).astype(np.float32)


# Rows, features, centers and runs: within a tile, some tiles, and a last one
# that is not full.
SIZES = [(64, 3, 3, 3), (257, 300, 10, 1), (300, 128, 130, 2), (128, 16, 64, 1)]


@pytest.mark.parametrize('precision', tiles.PRECISIONS)
@pytest.mark.parametrize('sizes', SIZES)
def test_the_nearest_are_those_of_numpy(sizes, precision):
  x, centers = drawn(*sizes)
  lengths = np.square(centers).sum(axis=2)
  lengths[:, 0] = np.inf
  part, labels = tiles.nearest(x, centers, lengths, precision, interpret=True)
  products = np.einsum('rkd,bd->rkb', centers.astype(float), x)
  expected = lengths[:, :, None] - 2 * products
  chex.assert_trees_all_close(part, expected.min(axis=1), atol=2e-4)
  np.testing.assert_array_equal(labels, expected.argmin(axis=1))


def test_of_equal_centers_the_first_is_the_nearest():
  x, centers = drawn(200, 5, 1, 1)
  centers = np.repeat(centers, 150, axis=1)
  lengths = np.square(centers).sum(axis=2)
  _, labels = tiles.nearest(x, centers, lengths, interpret=True)
  assert not labels.any()


@pytest.mark.parametrize('sizes', SIZES)
def test_sums_are_those_of_numpy(sizes):
  num_rows, _, num_clusters, num_runs = sizes
  x, _ = drawn(*sizes)
  generator = np.random.default_rng(1)
  labels = generator.integers(-1, num_clusters, (num_runs, num_rows))
  found = tiles.sums(labels.astype(np.int32), num_clusters, x, interpret=True)
  for own, sums in zip(labels, found, strict=True):
    expected = np.zeros((num_clusters + 1, x.shape[1]))
    np.add.at(expected, own, x)
    chex.assert_trees_all_close(sums, expected[:-1], atol=1e-5)


def test_a_sum_of_one_row_keeps_every_digit():
  x, _ = drawn(100, 20, 1, 1)
  x *= np.float32(10.0) ** np.arange(-20, 20, 2, dtype=np.float32)
  labels = np.arange(100, dtype=np.int32)[None]
  found = tiles.sums(labels, 100, x, interpret=True)
  np.testing.assert_array_equal(found[0], x)


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('precision', tiles.PRECISIONS)
def test_a_gpu_can_have_them(precision, wide):
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  x, labels = f32((5000, 784)), jax.ShapeDtypeStruct((2, 5000), jnp.int32)

  def both(x, centers, lengths, labels):
    found = tiles.nearest(x, centers, lengths, precision)
    return found, tiles.sums(labels, 1000, x)

  with jax.enable_x64(wide):
    lowered = lower(both, x, f32((2, 1000, 784)), f32((2, 1000)), labels)
  assert lowered.count('gpu.triton') >= 2


def lower(fn, *args):
  """The text of a program for a GPU."""
  traced = jax.jit(fn).trace(*args)
  return traced.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('wide', [False, True])
def test_a_step_on_a_gpu_leaves_no_distances_in_memory(wide, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  stats = LLOYD.stats
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  active = jax.ShapeDtypeStruct((2, 1000), bool)
  params = Clusters(f32((2, 1000, 32)), active)
  with jax.enable_x64(wide):
    for has_tiles in (False, True):
      monkeypatch.setattr(tiles, '_has_tensor_cores', lambda: has_tiles)  # noqa: B023
      text = lower(lambda *a: stats(*a), params, f32((5000, 32)), f32((5000,)))
      assert ('000x5000' in text) is not has_tiles
      assert (text.count('gpu.triton') >= 3) is has_tiles


def test_rows_on_a_cpu_beside_a_gpu_need_no_tiles(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(tiles, '_has_tensor_cores', lambda: True)
  x, _ = drawn(3000, 40, 1, 1)
  starts = x[None, :70]
  found = kmeans.fit(
    jax.random.key(0), x, num_clusters=70, init=starts, tol=1e9
  )
  centers, inertia = lloyd(x.astype(float), x[:70], int(found.num_steps))
  chex.assert_trees_all_close(found.inertia, inertia, rtol=1e-5)
  chex.assert_trees_all_close(found.centers, centers, atol=1e-5)


def test_float64_has_no_tiles(monkeypatch):
  monkeypatch.setattr(tiles, '_has_tensor_cores', lambda: True)
  assert tiles.available(jnp.float32)
  assert not tiles.available(jnp.float64)


@pytest.mark.parametrize('precision', tiles.PRECISIONS)
def test_k_means_by_tiles(with_tiles, precision):
  x, _ = drawn(403, 21, 1, 1)
  starts = x[:140].reshape(2, 70, 21)
  key, options = jax.random.key(0), {'num_clusters': 70, 'init': starts}
  options |= {'max_steps': 3, 'tol': 0.0, 'precision': precision}
  with pytest.warns(UserWarning, match='did not converge'):
    found = kmeans.fit(key, x, block_size=150, **options)
  expected = [lloyd(x.astype(float), own, 3) for own in starts]
  inertias = np.array([inertia for _, inertia in expected])
  chex.assert_trees_all_close(found.inertias, inertias, rtol=1e-5)
  assert found.history[3] == found.inertia
  centers, _ = expected[np.argmin(inertias)]
  chex.assert_trees_all_close(found.centers, centers, atol=1e-5)


def lloyd(x, centers, num_steps):
  """Centers and the inertia after some steps, in float64."""
  for _ in range(num_steps):
    squared = np.square(x[:, None] - centers[None]).sum(axis=2)
    labels = squared.argmin(axis=1)
    centers = np.stack([x[labels == k].mean(axis=0) for k in range(70)])
  squared = np.square(x[:, None] - centers[None]).sum(axis=2)
  return centers, squared.min(axis=1).sum()


def test_distances_that_a_product_blurs_are_differences(with_tiles):
  x, centers = drawn(500, 8, 20, 2)
  x, centers = 1e4 + x, 1e4 + centers
  active = np.ones((2, 20), bool)
  active[:, 0] = False
  found = distances.nearest_centers(*map(jnp.asarray, (x, centers, active)))
  squared = x[None, :, None].astype(float) - centers[:, None]
  squared = np.square(squared).sum(axis=3)[:, :, 1:]
  chex.assert_trees_all_close(found[0], squared.min(axis=2), rtol=1e-4)
  np.testing.assert_array_equal(found[1], 1 + squared.argmin(axis=2))


def test_an_unknown_precision_is_an_error():
  with pytest.raises(InputError, match="precision is 'low'"):
    kmeans.fit(jax.random.key(0), np.eye(3), num_clusters=2, precision='low')

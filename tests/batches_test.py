"""Orders of epochs, images held out, and images on the device or streamed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxclust import memory
from jaxclust.data import batches

KEYS = jax.random.split(jax.random.key(1), 2)


def draw_images(num_images):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (num_images, 3, 2, 1), np.uint8)


def test_an_epoch_sees_every_image_once():
  order = batches.draw_order(KEYS, 0, jnp.arange(21, dtype=jnp.int32), 8)
  chex.assert_shape(order, (2, batches.steps_per_epoch(21, 8), 8))
  for numbers in np.asarray(order).reshape(2, -1):
    assert sorted(numbers) == [-1, -1, -1, *range(21)]


def test_epochs_and_keys_have_orders_of_their_own():
  every = jnp.arange(24, dtype=jnp.int32)
  orders = [batches.draw_order(KEYS, epoch, every, 24) for epoch in (0, 1)]
  seen = {tuple(rows.tolist()) for order in orders for rows in order[:, 0]}
  assert len(seen) == 4


@pytest.mark.parametrize(('share', 'count'), [(0.0, 0), (0.1, 10), (0.25, 25)])
def test_images_held_out_are_drawn(share, count):
  first, second = (batches.draw_held_out(key, 100, share) for key in KEYS)
  assert first.sum() == second.sum() == count
  assert count == 0 or (first != second).any()


def test_labels_in_a_cycle_are_all_held_out():
  """Every tenth image would be of one class."""
  labels = np.arange(1000) % 10
  held = batches.draw_held_out(KEYS[0], 1000, 0.1)
  assert set(labels[held]) == set(range(10))


def test_placements_are_arrays_of_jax_or_numpy():
  images = [draw_images(5), draw_images(2)]
  for array in batches.place(images, 'device'):
    assert isinstance(array, jax.Array)
  for array, own in zip(batches.place(images, 'host'), images, strict=True):
    assert array is own


@pytest.mark.parametrize(
  ('stats', 'kind'),
  [
    (None, jax.Array),  # a core, which shares the memory of the machine
    ({'bytes_limit': 120}, jax.Array),
    ({'bytes_limit': 119}, np.ndarray),
  ],
)
def test_images_beyond_half_of_a_device_stay_on_the_host(
  stats, kind, monkeypatch
):
  class Device:
    def memory_stats(self):
      return stats

  monkeypatch.setattr(memory.jax, 'local_devices', lambda: [Device()])
  for array in batches.place([draw_images(6), draw_images(4)], 'auto'):
    assert isinstance(array, kind)  # of 60 bytes together


def test_parts_of_an_epoch_hold_their_images():
  images = draw_images(12)
  rows = np.array([[[3, 1], [11, 0], [7, -1]], [[5, 5], [2, 9], [4, 6]]])
  parts = [jnp.asarray(rows[:, :2]), jnp.asarray(rows[:, 2:])]
  mesh = Mesh(jax.devices()[:1], ('batch',))
  for source in (images, jnp.asarray(images)):
    found = list(batches.batches(source, parts, mesh))
    assert len(found) == 2
    for (pool, places, numbers), part in zip(found, parts, strict=True):
      assert isinstance(pool, jax.Array)
      assert places.shape == part.shape
      np.testing.assert_array_equal(numbers, part)
      np.testing.assert_array_equal(places < 0, part < 0)
      known = np.asarray(part) >= 0
      np.testing.assert_array_equal(
        np.asarray(pool)[places[known]], images[part[known]]
      )
  assert found[0][0].shape == (12, 3, 2, 1)  # on the device all of them


def test_a_part_that_is_streamed_is_no_larger_than_its_batches():
  part = jnp.arange(4, dtype=jnp.int32).reshape(1, 2, 2)
  mesh = Mesh(jax.devices()[:1], ('batch',))
  ((pool, _, _),) = batches.batches(draw_images(50), [part], mesh)
  assert pool.shape == (4, 3, 2, 1)


def test_each_device_gets_the_images_of_its_share():
  images, mesh = draw_images(12), Mesh(jax.devices()[:2], ('batch',))
  part = jnp.array([[[3, 1, 7], [11, 0, -1]]])
  ((pool, place, numbers),) = batches.batches(images, [part], mesh)
  np.testing.assert_array_equal(numbers, [[[3, 1, 7, -1], [11, 0, -1, -1]]])
  assert pool.shape[0] == 8
  for own, columns in zip(
    pool.addressable_shards, ([0, 1], [2, 3]), strict=True
  ):
    places, wanted = (np.asarray(a)[..., columns] for a in (place, numbers))
    np.testing.assert_array_equal(places < 0, wanted < 0)
    known = wanted >= 0
    np.testing.assert_array_equal(
      np.asarray(own.data)[places[known]], images[wanted[known]]
    )

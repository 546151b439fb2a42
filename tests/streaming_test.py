"""Images on the device and streamed from the host are the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import streaming
from jaxclust.numerics import InputError


def draw_images(num_images):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (num_images, 3, 2, 1), np.uint8)


def test_placements_are_arrays_of_jax_or_numpy():
  images = [draw_images(5), draw_images(2)]
  for array in streaming.place(images, 'device'):
    assert isinstance(array, jax.Array)
  for array, own in zip(streaming.place(images, 'host'), images, strict=True):
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

  monkeypatch.setattr(streaming.jax, 'devices', lambda: [Device()])
  for array in streaming.place([draw_images(6), draw_images(4)], 'auto'):
    assert isinstance(array, kind)  # of 60 bytes together


def test_parts_of_an_epoch_hold_the_images_of_their_rows():
  images = draw_images(12)
  rows = np.array([[[3, 1], [11, 0], [7, -1]], [[5, 5], [2, 9], [4, 6]]])
  parts = [jnp.asarray(rows[:, :2]), jnp.asarray(rows[:, 2:])]
  for source in (images, jnp.asarray(images)):
    found = list(streaming.batches(source, parts))
    assert len(found) == 2
    for (pool, places), part in zip(found, parts, strict=True):
      assert isinstance(pool, jax.Array)
      assert places.shape == part.shape
      np.testing.assert_array_equal(places < 0, part < 0)
      known = np.asarray(part) >= 0
      np.testing.assert_array_equal(
        np.asarray(pool)[places[known]], images[part[known]]
      )
  assert found[0][0].shape == (12, 3, 2, 1)  # on the device all of them


def test_a_part_that_is_streamed_is_no_larger_than_its_rows():
  part = jnp.arange(4, dtype=jnp.int32).reshape(1, 2, 2)
  ((pool, _),) = streaming.batches(draw_images(50), [part])
  assert pool.shape == (4, 3, 2, 1)


def test_blocks_are_all_images_in_order(monkeypatch):
  images = draw_images(11)
  monkeypatch.setattr(streaming, '_BLOCK_BYTES', 4 * 6)
  blocks = list(streaming.blocks(images))
  assert [len(block) for block in blocks] == [4, 4, 3]
  assert all(isinstance(block, jax.Array) for block in blocks)
  np.testing.assert_array_equal(np.concatenate(blocks), images)
  (whole,) = streaming.blocks(jnp.asarray(images))
  np.testing.assert_array_equal(whole, images)


def test_a_placement_that_is_unknown_is_named():
  with pytest.raises(InputError, match="placement is 'disk': it must be one"):
    streaming.check_placement('disk')

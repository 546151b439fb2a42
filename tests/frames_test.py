"""Coordinates in which float32 keeps its digits."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from point_sets import sharded

from jaxclust import inputs
from jaxclust.frames import Sphere
from jaxclust.inputs import describe, place


def test_a_frame_centers_and_scales_data_of_any_offset_and_scale():
  x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
  for offset in (0.0, 1e4, -1e5):
    for scale in (1e-6, 1.0, 1e6):
      data = jnp.asarray((x + np.float32(offset)) * np.float32(scale))
      limit = 1e-6 * (1 + abs(offset))  # what float32 holds of the offset
      for rows in (
        place(data),
        place(data, block_size=64),
        place(sharded(data)),
      ):
        frame = describe(rows).frame
        inside = np.asarray(frame.apply(data))
        np.testing.assert_allclose(inside.mean(axis=0), 0, atol=limit)
        np.testing.assert_allclose(inside.var(axis=0).mean(), 1, rtol=1e-3)
      back = (frame.invert(frame.apply(data)) - data) / frame.scale
      np.testing.assert_allclose(back, 0, atol=limit)


def test_rows_of_any_length_enter_the_sphere():
  x = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
  sphere = Sphere(jnp.float32(0.5))
  inside = sphere.apply(x)
  np.testing.assert_allclose(inside[:3], [[1.2, 1.6]] * 3, rtol=1e-6)
  np.testing.assert_array_equal(inside[3], [0, 0])
  np.testing.assert_allclose(sphere.invert(inside[:1]), [[0.6, 0.8]], rtol=1e-6)


def test_centers_move_onto_the_sphere_along_their_rays():
  sphere = Sphere(jnp.float32(0.5))
  inside = sphere.project(jnp.array([[0.3, 0.4]]))
  np.testing.assert_allclose(inside, [[1.2, 1.6]], rtol=1e-6)


def test_a_frame_weighs_its_rows():
  x = np.array([[0.0], [2.0], [1e6]], np.float32)
  frame = describe(place(x, [3.0, 1.0, 0.0], block_size=2)).frame
  np.testing.assert_allclose(frame.offset, [0.5])
  np.testing.assert_allclose(frame.scale, np.sqrt(0.75), rtol=1e-6)


def test_equal_rows_have_a_frame_of_scale_one():
  frame = describe(place(np.full((4, 2), 7, np.float32))).frame
  np.testing.assert_array_equal(frame.offset, [7, 7])
  assert frame.scale == 1


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_equal_rows_of_any_weights_have_the_scale_one(metric):
  weight = np.random.default_rng(0).random(50)
  x = np.full((50, 3), 0.1, np.float32)
  assert describe(place(x, weight), metric).frame.scale == 1


def test_numbers_too_small_for_floats_have_the_scale_one():
  x = np.array([[1e-45], [0.0]], np.float32)
  assert describe(place(x)).frame.scale == 1


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_few_rows_have_the_frame_of_many(metric, monkeypatch):
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (40, 5)).astype(np.float32)
  rows = place(x, rng.random(40))
  few = describe(rows, metric).frame
  monkeypatch.setattr(inputs, '_are_few', lambda rows: False)
  chex.assert_trees_all_close(few, describe(rows, metric).frame, rtol=1e-5)

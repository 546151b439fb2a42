"""Networks at work on all images: batches and places change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import METHOD, NETWORK, draw_images

from jaxclust import encoding

IMAGES = draw_images(20)
PIXELS = jnp.asarray(IMAGES / np.float32(255))
# Numbers above 0, so that relus are passed.
PARAMS = jax.tree.map(
  lambda a: a + 0.1, jax.jit(METHOD.init)(jax.random.key(1), None)
)


@pytest.mark.parametrize('place', [np.asarray, jnp.asarray])
@pytest.mark.parametrize('batch_size', [1, 7, 20, 64])
def test_codes_errors_and_images_do_not_depend_on_the_batch(batch_size, place):
  images = place(IMAGES)
  codes = encoding.embed(METHOD, PARAMS, images, batch_size)
  expected = NETWORK.apply(PARAMS, PIXELS, method='encode')
  np.testing.assert_allclose(codes, expected, rtol=1e-5)
  out = NETWORK.apply(PARAMS, PIXELS)
  assert out.std() > 0.01
  found = encoding.decode(METHOD, PARAMS, place(codes), batch_size)
  np.testing.assert_allclose(found, out, rtol=1e-5)
  errors = encoding.errors(METHOD, PARAMS, images, batch_size)
  expected = jnp.square(out - PIXELS).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(errors, expected, rtol=1e-5)


@pytest.mark.parametrize('batch_size', [7, 20])
def test_streamed_images_have_the_codes_of_resident_ones(batch_size):
  codes = [
    encoding.embed(METHOD, PARAMS, images, batch_size)
    for images in (IMAGES, jnp.asarray(IMAGES))
  ]
  np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize('shape', [(9, 28, 28, 1), (3, 5, 7, 3)])
def test_bytes_are_the_same_points_as_floats(shape):
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  images.flat[:256] = np.arange(256)[: images.size]
  floats = images.astype(np.float32) / 255
  for same in (images, floats):
    points = encoding.as_points(jnp.asarray(same))
    np.testing.assert_array_equal(points, floats.reshape(len(floats), -1))
    assert points.dtype == jnp.float32

"""Random changes of images, and their bounds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust.data import augment as module
from jaxclust.data.augment import Augmentation, Motion
from jaxclust.errors import InputError

pytestmark = pytest.mark.usefixtures('light_compiler')

KEY = jax.random.key(0)

# One program compiles faster than its operations one by one.
augment = jax.jit(module.augment, static_argnums=2)
move_by_radians = jax.jit(module._move)


def move(image, shift, degrees):
  angle = np.float32(np.deg2rad(degrees))
  return move_by_radians(image, np.array(shift, np.float32), angle)


def split(pixels, key=KEY):
  return jax.random.split(key, len(pixels))


def draw(shape):
  return jax.random.uniform(KEY, shape)


def test_a_shift_by_hand():
  image = np.zeros((4, 5, 2), np.float32)
  image[1, 2] = 1, 2
  moved = move(image, (2, -1), 0.0)
  expected = np.zeros((4, 5, 2))
  expected[3, 1] = 1, 2
  np.testing.assert_allclose(moved, expected, atol=1e-6)
  halfway = move(image, (0.5, 0), 0.0)
  expected = [0, 0.5, 0.5, 0]
  np.testing.assert_allclose(np.array(halfway)[:, 2, 0], expected, atol=1e-6)


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(turns):
  image = np.array(draw((5, 5, 3)))
  expected = np.rot90(image, -turns)  # clockwise
  np.testing.assert_allclose(
    move(image, (0, 0), 90 * turns), expected, atol=1e-5
  )


def test_what_is_moved_beyond_the_edge_is_gone():
  image = np.ones((4, 4, 1), np.float32)
  np.testing.assert_array_equal(move(image, (9, 0), 0.0), 0)


def test_nothing_drawn_is_nothing_changed():
  pixels = draw((3, 4, 6, 1))
  seen, wanted = module.augment(split(pixels), pixels, Augmentation())
  assert seen is wanted is pixels


def test_motion_stays_within_its_bounds():
  """A dot in the middle moves by at most the largest shift."""
  pixels = np.zeros((200, 11, 11, 1), np.float32)
  pixels[:, 5, 5] = 1
  augmentation = Augmentation(None, Motion(2.0, 30.0))
  seen, wanted = map(np.array, augment(split(pixels), pixels, augmentation))
  np.testing.assert_array_equal(seen, wanted)
  mass = wanted[..., 0] / wanted.sum(axis=(1, 2, 3))[:, None, None]
  place = np.arange(11) - 5
  down, right = mass.sum(2) @ place, mass.sum(1) @ place
  for shift in (down, right):
    assert 1.5 < abs(shift).max() < 2.2  # of sampled masses
    assert abs(shift.mean()) < 0.3


def test_noise_is_for_the_input_alone():
  pixels = np.full((100, 8, 8, 1), 0.5, np.float32)
  keys = split(pixels)
  seen, wanted = map(np.array, augment(keys, pixels, Augmentation(noise=0.1)))
  np.testing.assert_array_equal(wanted, pixels)
  np.testing.assert_allclose(seen.std(), 0.1, rtol=0.05)
  loud = np.array(augment(keys, pixels, Augmentation(noise=10.0))[0])
  assert (loud.min(), loud.max()) == (0, 1)


def test_keys_and_images_have_draws_of_their_own():
  pixels = jnp.broadcast_to(0.2 + draw((6, 6, 1)) / 4, (4, 6, 6, 1))
  drawn = Augmentation(0.1, Motion(1.0, 20.0))
  seen = [augment(split(pixels, k), pixels, drawn)[0] for k in split(range(2))]
  values = jnp.concatenate(seen)[:, 2, 3, 0]
  assert len(set(values.tolist())) == 8


def test_options_of_zero_draw_nothing():
  options = {'noise': 0.0, 'max_shift': 0, 'max_rotation': 0.0}
  assert module.from_options(**options) == Augmentation()
  options['max_shift'] = 2
  found = module.from_options(**options)
  assert found == Augmentation(None, Motion(2.0, 0.0))
  chex.assert_type(jax.tree.leaves(found), float)


@pytest.mark.parametrize(
  ('name', 'value'),
  [('noise', -0.1), ('max_shift', -1), ('max_rotation', 200.0)],
)
def test_options_that_cannot_be_used_are_named(name, value):
  options = {'noise': 0.0, 'max_shift': 0.0, 'max_rotation': 0.0}
  with pytest.raises(InputError, match=f'{name} is {value}'):
    module.from_options(**options | {name: value})

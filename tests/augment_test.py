"""Random changes of images, and their bounds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclust.data import augment as module
from jaxclust.data.augment import Augmentation, from_options
from jaxclust.errors import InputError

pytestmark = pytest.mark.usefixtures('light_compiler')

KEY = jax.random.key(0)

# One program compiles faster than its operations one by one.
augment = jax.jit(module.augment, static_argnums=3)


def move(image, shift, degrees, monkeypatch):
  """Moves by a shift and an angle: the largest, drawn as they are."""
  draws = jnp.array([*shift, degrees], jnp.float32) / 180
  monkeypatch.setattr(jax.random, 'uniform', lambda *_, **__: draws)
  return module._move(180.0, 180.0, KEY, image)


def split(pixels, key=KEY):
  return jax.random.split(key, len(pixels))


def draw(shape):
  return jax.random.uniform(KEY, shape)


def test_a_shift_by_hand(monkeypatch):
  image = np.zeros((4, 5, 2), np.float32)
  image[1, 2] = 1, 2
  moved = move(image, (2, -1), 0.0, monkeypatch)
  expected = np.zeros((4, 5, 2))
  expected[3, 1] = 1, 2
  np.testing.assert_allclose(moved, expected, atol=1e-6)
  halfway = move(image, (0.5, 0), 0.0, monkeypatch)
  expected = [0, 0.5, 0.5, 0]
  np.testing.assert_allclose(np.array(halfway)[:, 2, 0], expected, atol=1e-6)


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(turns, monkeypatch):
  image = np.array(draw((5, 5, 3)))
  expected = np.rot90(image, -turns)  # clockwise
  moved = move(image, (0, 0), 90 * turns, monkeypatch)
  np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_what_is_moved_beyond_the_edge_is_gone(monkeypatch):
  image = np.ones((4, 4, 1), np.float32)
  np.testing.assert_array_equal(move(image, (9, 0), 0.0, monkeypatch), 0)


def test_nothing_drawn_is_nothing_changed():
  pixels = draw((3, 4, 6, 1))
  views, wanted = module.augment(split(pixels), pixels, Augmentation())
  assert wanted is pixels
  np.testing.assert_array_equal(views[:, 0], pixels)


def test_motion_stays_within_its_bounds():
  """A dot in the middle moves by at most the largest shift."""
  pixels = np.zeros((200, 11, 11, 1), np.float32)
  pixels[:, 5, 5] = 1
  drawn = from_options(max_shift=2.0, max_rotation=30.0)
  views, wanted = map(np.array, augment(split(pixels), pixels, drawn))
  np.testing.assert_array_equal(views[:, 0], wanted)
  mass = wanted[..., 0] / wanted.sum(axis=(1, 2, 3))[:, None, None]
  place = np.arange(11) - 5
  down, right = mass.sum(2) @ place, mass.sum(1) @ place
  for shift in (down, right):
    assert 1.5 < abs(shift).max() < 2.2  # of sampled masses
    assert abs(shift.mean()) < 0.3


def test_a_crop_is_pillows_bilinear_enlargement():
  """Pillow enlarges a box by the same triangles, but for those at its edge."""
  image = np.array(draw((12, 10, 1)))
  for start, share in ((0.25, 0.5), (0.0, 1.0), (0.1, 0.7)):
    rows = module._interpolate(12, start, share)
    columns = module._interpolate(10, start, share)
    found = module._separable(rows, columns, image)[..., 0]
    box = start * 10, start * 12, (start + share) * 10, (start + share) * 12
    expected = Image.fromarray(image[..., 0]).resize(
      (10, 12), Image.Resampling.BILINEAR, box=box
    )
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(
      found[inner], np.array(expected)[inner], atol=0.02
    )


def test_views_after_the_second_are_smaller_crops():
  ramp = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (50, 40, 1))[
    ..., None
  ]
  drawn = from_options(crop=0.5, extra_crop=0.1)
  views, _ = augment(split(ramp), ramp, drawn, 4)
  middle = np.asarray(views)[:, :, 20, 10:30, 0]
  share = np.square((middle[..., -1] - middle[..., 0]) * 39 / 19)  # of the area
  assert ((share[:, :2] > 0.499) & (share[:, :2] < 1.001)).all()
  assert ((share[:, 2:] > 0.099) & (share[:, 2:] < 0.501)).all()
  assert share[:, 2:].min() < 0.2


def test_crops_keep_their_share_of_the_area():
  """Slopes of a ramp are as much smaller as a crop is enlarged."""
  ramp = np.linspace(0, 1, 32, dtype=np.float32)
  pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None]), axis=2)
  pixels = np.broadcast_to(pixels, (300, 32, 32, 2))
  drawn = from_options(crop=0.5, stretch=1.5)
  views = np.array(augment(split(pixels), pixels, drawn)[1])
  tall = (views[:, 20, 16, 0] - views[:, 10, 16, 0]) / (ramp[20] - ramp[10])
  wide = (views[:, 16, 20, 1] - views[:, 16, 10, 1]) / (ramp[20] - ramp[10])
  area, ratio = tall * wide, wide / tall
  assert 0.4 < area.min() < 0.55
  assert 0.95 < area.max() < 1.001
  assert 1 / 1.51 < ratio.min() < 0.8
  assert 1.25 < ratio.max() < 1.51


def test_a_flip_swaps_left_and_right_of_its_share_of_the_images():
  pixels = np.array(draw((400, 3, 5, 1)))
  views = np.array(augment(split(pixels), pixels, from_options(flip=0.3))[1])
  same = np.isclose(views, pixels, atol=1e-6).all(axis=(1, 2, 3))
  swapped = np.isclose(views, pixels[:, :, ::-1], atol=1e-6).all(axis=(1, 2, 3))
  assert (same ^ swapped).all()
  assert 0.2 < swapped.mean() < 0.4


def test_tone_scales_about_the_mean_and_stays_within_0_and_1():
  pixels = np.full((300, 4, 4, 1), 0.4, np.float32)
  pixels[:, :2] = 0.6
  drawn = from_options(brightness=0.4)
  views = np.array(augment(split(pixels), pixels, drawn)[1])
  factor = views[:, 0, 0, 0] / 0.6
  np.testing.assert_allclose(views[:, 3, 3, 0], 0.4 * factor, rtol=1e-5)
  assert 0.6 <= factor.min() < 0.65
  assert 1.35 < factor.max() <= 1.4
  drawn = from_options(contrast=0.5)
  views = np.array(augment(split(pixels), pixels, drawn)[1])
  np.testing.assert_allclose(views.mean(axis=(1, 2, 3)), 0.5, rtol=1e-5)
  spread = (views[:, 0] - views[:, 3]).max(axis=(1, 2)) / 0.2
  assert 0.5 <= spread.min() < 0.6
  assert 1.4 < spread.max() <= 1.5001
  bright = augment(split(pixels), pixels + 0.4, from_options(brightness=1.0))[1]
  assert bright.max() == 1


def test_a_blur_keeps_the_mass_of_a_dot():
  pixels = np.zeros((50, 15, 15, 1), np.float32)
  pixels[:, 7, 7] = 1
  views = np.array(augment(split(pixels), pixels, from_options(blur=1.5))[1])
  np.testing.assert_allclose(views.sum(axis=(1, 2, 3)), 1, rtol=1e-3)
  place = np.square(np.arange(15) - 7)
  variance = views[..., 0].sum(axis=2) @ place
  assert variance.max() < 1.5**2 * 1.05
  assert variance.max() > 1.3**2
  assert variance.min() < 0.2


def test_patterns_darken_some_views_coarsely_and_some_finely():
  pixels = np.full((300, 20, 21, 2), 0.5, np.float32)
  views = np.array(augment(split(pixels), pixels, from_options(pattern=0.8))[1])
  np.testing.assert_array_equal(views[..., 0], views[..., 1])
  left = views[..., 0] / 0.5
  assert left.min() > 0.2
  assert left.max() <= 1
  assert left.min() < 0.25
  plain = (left == 1).all(axis=(1, 2))
  assert 0.2 < plain.mean() < 0.4
  blocks = left[:, :, :20].reshape(300, 10, 2, 10, 2)
  fine = (blocks == blocks[:, :, :1, :, :1]).all(axis=(1, 2, 3, 4)) & ~plain
  assert 0.4 < fine.mean() / (1 - plain.mean()) < 0.6
  steps = np.abs(np.diff(left, axis=1)).max(axis=(1, 2))
  assert steps[~fine & ~plain].max() < 0.3 < steps[fine].max()


def test_what_is_erased_is_a_rectangle_of_at_most_its_share():
  pixels = np.ones((200, 20, 20, 1), np.float32)
  views = np.array(augment(split(pixels), pixels, from_options(erase=0.4))[1])
  for gone in views[..., 0] == 0:
    rows, columns = gone.any(axis=1), gone.any(axis=0)
    np.testing.assert_array_equal(gone, rows[:, None] & columns[None])
  share = (views == 0).mean(axis=(1, 2, 3))
  assert 0.3 < share.max() < 0.45
  assert share.min() < 0.02


def test_noise_is_for_the_input_alone():
  pixels = np.full((100, 8, 8, 1), 0.5, np.float32)
  keys = split(pixels)
  views, wanted = augment(keys, pixels, from_options(noise=0.1))
  np.testing.assert_array_equal(wanted, pixels)
  np.testing.assert_allclose(np.std(views), 0.1, rtol=0.05)
  loud = np.array(augment(keys, pixels, from_options(noise=10.0))[0])
  assert (loud.min(), loud.max()) == (0, 1)


def test_keys_images_and_views_have_draws_of_their_own():
  pixels = jnp.broadcast_to(0.2 + draw((6, 6, 1)) / 4, (4, 6, 6, 1))
  drawn = from_options(noise=0.1, max_shift=1.0, max_rotation=20.0, crop=0.6)
  views = [
    augment(split(pixels, k), pixels, drawn, 3)[0] for k in split(range(2))
  ]
  values = jnp.stack(views)[:, :, :, 2, 3, 0]
  assert len(set(values.reshape(-1).tolist())) == 2 * 4 * 3
  alone = augment(split(pixels, KEY), pixels, drawn, 1)[0]
  np.testing.assert_array_equal(
    augment(split(pixels, KEY), pixels, drawn, 2)[0][:, 0], alone[:, 0]
  )


def test_options_that_change_nothing_draw_nothing():
  assert from_options() == Augmentation()
  neutral = {name: value for name, (value, *_) in module.OPTIONS.items()}
  assert from_options(**neutral) == Augmentation()
  found = from_options(**neutral | {'max_shift': 2})
  assert found == Augmentation(motion=(2.0, 0.0))
  chex.assert_type(jax.tree.leaves(found), float)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('noise', -0.1),
    ('max_shift', -1),
    ('max_rotation', 200.0),
    ('crop', 0.0),
    ('stretch', 0.5),
    ('flip', 1.5),
    ('erase', 1.0),
    ('contrast', 2.0),
  ],
)
def test_options_that_cannot_be_used_are_named(name, value):
  with pytest.raises(InputError, match=f'{name} is {value}'):
    from_options(**{name: value})

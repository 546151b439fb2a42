"""What a model finds in images, and what its file holds."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import (
  IMAGES,
  KINDS,
  SHAPE,
  leave,
  mixture_of_pixels,
  model_of,
  of_pixels,
)

import jaxclust
from jaxclust import gmm, model, networks, storage
from jaxclust.errors import InputError

pytestmark = pytest.mark.usefixtures('light_compiler')

# What is found.


def test_k_means_by_hand():
  """Four pixels of 0.2 are 0.4 from black and 1.6 from white."""
  own = of_pixels((2, 2, 1), [[0.0] * 4, [1.0] * 4])
  images = np.full((3, 2, 2), [[[51]], [[255]], [[0]]], np.uint8)
  found = own.assess(images)
  np.testing.assert_array_equal(found.labels, [0, 1, 0])
  np.testing.assert_allclose(found.distance, [0.4, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found.confidence, [0.75, 1, 1], atol=1e-6)
  np.testing.assert_array_equal(found.outlier_score, found.distance)
  np.testing.assert_allclose(own.distances(images)[0], [0.4, 1.6], rtol=1e-6)


def test_cosine_k_means_by_hand():
  """The second image is brighter, but has the direction of the first center."""
  own = of_pixels((1, 2, 1), [[1.0, 0.0], [0.6, 0.8]], 'cosine')
  images = np.array([[[51, 0]], [[255, 0]], [[0, 51]]], np.uint8)
  found = own.assess(images)
  np.testing.assert_array_equal(found.labels, [0, 0, 1])
  np.testing.assert_allclose(found.distance, [0, 0, 0.2], atol=1e-6)
  np.testing.assert_allclose(found.confidence, [1, 1, 0.8], atol=1e-6)
  expected = [[0, 0.4], [0, 0.4], [1, 0.2]]
  np.testing.assert_allclose(own.distances(images), expected, atol=1e-6)


@pytest.mark.parametrize(
  ('centers', 'expected'), [([0.0], 1.0), ([0.5, 0.5], 0.0), ([0.0, 1.0], 0.0)]
)
def test_confidence_where_there_is_no_other_center_or_one_as_near(
  centers, expected
):
  own = of_pixels((1, 1, 1), np.array(centers)[:, None])
  found = own.assess(np.full((1, 1, 1), 0.5))
  np.testing.assert_array_equal(found.confidence, [expected])


def test_a_mixture_by_hand():
  """One pixel; densities 0.25 N(0, 0.5) and 0.75 N(1, 0.25) at 0.6."""
  params = gmm.GMMParams(
    jnp.log(jnp.array([0.25, 0.75])),
    jnp.array([[0.0], [1.0]]),
    jnp.array([[0.5], [0.25]]),
  )
  own = mixture_of_pixels((1, 1, 1), params)
  joint = [
    w / s / math.sqrt(2 * math.pi) * math.exp(-((0.6 - m) ** 2) / (2 * s * s))
    for w, m, s in ((0.25, 0, 0.5), (0.75, 1, 0.25))
  ]
  images = np.full((1, 1, 1, 1), 0.6, np.float32)
  found = own.assess(images)
  np.testing.assert_array_equal(found.labels, [1])
  np.testing.assert_allclose(found.confidence, [joint[1] / sum(joint)], 1e-5)
  np.testing.assert_allclose(found.outlier_score, [-math.log(sum(joint))], 1e-5)
  np.testing.assert_allclose(found.distance, [0.4], 1e-5)
  shares = own.responsibilities(images)
  np.testing.assert_allclose(shares, [np.array(joint) / sum(joint)], 1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_the_parts_of_an_assessment_agree(kind):
  own = model_of(kind)
  found = own.assess(IMAGES)
  assert found.labels.dtype == np.int32
  if kind in ('n2d', 'spread', 'committee'):  # neighbours have a say
    assert len(set(found.labels.tolist())) > 1
  else:
    np.testing.assert_array_equal(found.labels[:3], range(3))
  np.testing.assert_array_equal(found.labels, own.predict(IMAGES))
  distances = np.asarray(own.distances(IMAGES))
  away = distances[np.arange(len(IMAGES)), found.labels]
  np.testing.assert_allclose(found.distance, away, rtol=1e-3, atol=1e-3)
  x = own.encode(IMAGES)
  if own.recipe['clusterer'] == 'gmm':
    scores = gmm.outlier_score(own.clusters, x)
    np.testing.assert_array_equal(found.outlier_score, scores)
  elif not own.recipe['spread']:
    np.testing.assert_array_equal(found.labels, distances.argmin(axis=1))
  if own.assigner.probabilities is not None:
    shares = own.responsibilities(IMAGES)
    np.testing.assert_array_equal(found.labels, shares.argmax(axis=1))
    np.testing.assert_array_equal(found.confidence, shares.max(axis=1))


def test_bytes_are_the_floats_that_they_stand_for():
  own = model_of('full')
  for dtype in (np.float32, np.float64):
    floats = (IMAGES / 255).astype(dtype)
    np.testing.assert_allclose(
      own.encode(floats), own.encode(IMAGES), atol=1e-5
    )
  grey = of_pixels((6, 5, 1), np.zeros((1, 30)))
  np.testing.assert_array_equal(
    grey.encode(IMAGES[..., 0]), grey.encode(IMAGES[..., :1])
  )


def test_any_number_of_images_goes_in_blocks(monkeypatch):
  own = model_of('full')
  whole = own.assess(jnp.asarray(IMAGES))
  monkeypatch.setattr(model, '_BLOCK_BYTES', 16 * IMAGES[0].nbytes)
  sizes = []
  monkeypatch.setattr(
    model, 'check_images', lambda block, encoded: sizes.append(len(block))
  )
  parts = own.assess(IMAGES)
  assert sizes == [16, 16, 8]
  for part, all_at_once in zip(parts, whole, strict=True):
    np.testing.assert_allclose(part, all_at_once, rtol=1e-5)
  assert own.predict(IMAGES[:1]).shape == (1,)


# And back.


def test_a_decoded_code_is_the_networks_reconstruction():
  own = model_of('full')
  network = networks.build(SHAPE, name='conv', features=(4, 2))
  pixels = IMAGES.astype(np.float32) / 255
  again = jax.jit(network.apply)(own.params, pixels)
  assert again.max() > 0
  np.testing.assert_allclose(
    own.decode(own.encode(IMAGES)), jnp.clip(again, 0, 1), atol=1e-5
  )


def test_decoded_pixels_are_the_image():
  own = model_of('kmeans')
  np.testing.assert_allclose(
    own.decode(own.encode(IMAGES)), IMAGES / np.float32(255), atol=1e-6
  )


def test_samples_are_decoded_points_of_the_mixture():
  own, key = model_of('tied'), jax.random.key(1)
  drawn = own.sample(key, 50)
  assert drawn.shape == (50, *SHAPE)
  assert drawn.min() >= 0
  assert drawn.max() <= 1
  codes = gmm.sample(key, own.clusters, 50)
  np.testing.assert_array_equal(drawn, own.decode(codes))


def test_k_means_has_no_responsibilities_and_no_samples():
  own = model_of('kmeans')
  with pytest.raises(InputError, match='no responsibilities: use distances'):
    own.responsibilities(IMAGES)
  with pytest.raises(InputError, match='no samples: use decode'):
    own.sample(jax.random.key(0), 2)
  with pytest.raises(InputError, match='run of dec has no samples'):
    model_of('dec').sample(jax.random.key(0), 2)
  with pytest.raises(InputError, match='num_samples is 0'):
    model_of('full').sample(jax.random.key(0), 0)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (IMAGES[:, :5], r"\(40, 5, 5, 3\): the run takes \('N', 6, 5, 3\)"),
    (IMAGES[..., :1], r'\(40, 6, 5, 1\)'),
    (IMAGES[..., 0], r'\(40, 6, 5\)'),
    (IMAGES[0], r'\(6, 5, 3\)'),
    (IMAGES[:0], r'\(0, 6, 5, 3\)'),
    (IMAGES.astype(np.int32), 'int32: give uint8'),
    (IMAGES.astype(np.float32), 'values from 0 to 255'),
    (IMAGES / 255 - 0.1, 'values from -0.1'),
    (np.full(IMAGES.shape, np.nan), 'NaN'),
    ('image', r'\(\)'),
  ],
)
def test_images_unlike_those_of_the_run_are_refused(images, message):
  with pytest.raises(InputError, match=message):
    model_of('full').predict(images)


# What is left.


@pytest.mark.parametrize('kind', KINDS)
def test_a_loaded_model_is_the_saved_one(kind, tmp_path):
  own = model_of(kind)
  loaded = jaxclust.load(str(leave(tmp_path / 'run', own)))
  assert loaded.recipe == own.recipe
  if kind in gmm.FAMILIES:
    assert gmm.family_of(loaded.clusters) == kind
  for a, b in zip(loaded.assess(IMAGES), own.assess(IMAGES), strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


def test_the_file_holds_arrays_and_a_recipe_in_json(tmp_path):
  path = leave(tmp_path / 'run', model_of('full')) / 'model.npz'
  with np.load(path, allow_pickle=False) as arrays:
    recipe = json.loads(str(arrays['recipe']))
    assert recipe == model_of('full').recipe
    others = [key for key in arrays.files if key != 'recipe']
    assert all(arrays[key].dtype.kind in 'if' for key in others)
    assert arrays['params/params/encoder_0/kernel'].shape == (3, 3, 3, 4)
    assert arrays['clusters/means'].shape == (3, 8)


def test_a_directory_without_a_model_says_why(tmp_path):
  for path in ('', tmp_path / 'none'):
    with pytest.raises(InputError, match='is not a directory: name that'):
      storage.load(path)
  (tmp_path / 'config.json').write_text('{}')
  told = f'is not finished: run its command with --workdir={tmp_path}'
  with pytest.raises(InputError, match=told):
    storage.load(tmp_path)
  (tmp_path / 'summary.json').write_text('{}')
  with pytest.raises(InputError, match='runs that cluster leave one'):
    storage.load(tmp_path)
  with pytest.raises(InputError, match=r'holds no model-2\.npz: .* from 0'):
    storage.load(tmp_path, seed=2)


def change(**changes):
  """Writes other arrays; None leaves one out."""

  def damage(path):
    with np.load(path) as arrays:
      arrays = dict(arrays) | changes
    arrays = {name: a for name, a in arrays.items() if a is not None}
    with open(path, 'wb') as file:
      np.savez(file, **arrays)

  return damage


def means(array):
  return change(**{'clusters/means': array})


def recipe(**changes):
  """Writes another recipe."""
  return change(recipe=json.dumps(model_of('full').recipe | changes))


def changed_network(**options):
  return recipe(network={'name': 'conv', 'features': [4, 2]} | options)


def cut(path):
  path.write_bytes(path.read_bytes()[:-40])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (cut, 'cannot be read as .npz'),
    (flip, 'cannot be read as .npz'),
    (change(scale=np.array([{}])), 'cannot be read as .npz .*pickle'),
    (change(format=1), 'has format 1, and this version .* reads format 2'),
    (change(format=None), 'has format None'),
    (means(None), 'does not hold a model'),
    (means(np.ones((0, 8))), r'means is float64 \(0, 8\), and not'),
    (means(np.ones((3, 9))), r'means is float64 \(3, 9\), and not'),
    (means(np.ones((3, 8), int)), r'means is int64 \(3, 8\), and not'),
    (change(scale=np.ones((1, 9))), r'scale is float64 \(1, 9\), and not'),
    (change(scale=np.ones((1, 1), int)), r'scale is int64 \(1, 1\)'),
    (
      change(**{'clusters/scale_tril': np.ones((3, 8, 7), np.float32)}),
      r'not float32 \(3, 8, 8\)',
    ),
    (change(recipe='[]'), 'not a JSON object'),
    (change(recipe='{'), 'does not hold a model'),
    (recipe(method='vae'), "does not hold a model .*'vae'"),
    (recipe(method_options={'x': 1}), 'does not hold a model'),
    (recipe(clusterer='k'), "does not hold a model .*'k'"),
    (recipe(clusterer=''), 'does not hold a model'),
    (changed_network(features=[4, 3]), 'does not hold a model'),
    (changed_network(features=[4, 0]), 'each of features is 0'),
    (changed_network(name='resnet'), "network.name is 'resnet'"),
    (recipe(image_shape=[6, 5]), 'does not hold a model'),
    (recipe(image_shape=[6.5, 5, 3]), 'a size is 6.5'),
    (recipe(image_shape=[10**15, 10**15, 3]), 'does not hold a model'),
    (recipe(batch_size=0), 'a size is 0'),
  ],
)
def test_a_damaged_model_is_named(damage, message, tmp_path):
  path = leave(tmp_path / 'run', model_of('full'))
  damage(path / 'model.npz')
  with pytest.raises(InputError, match=f'model.npz .*{message}') as e:
    storage.load(path)
  assert str(e.value).endswith('run its command again in another directory')
  assert '\n' not in str(e.value)

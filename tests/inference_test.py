"""Finished runs put to use: what they find in images, and what they leave."""

import csv
import functools
import json
import math
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclust
from jaxclust import gmm, inference, streaming
from jaxclust.autoencoder import Autoencoder
from jaxclust.fitting import Encoder
from jaxclust.gmm import GMMParams
from jaxclust.inference import Assessment, Model
from jaxclust.numerics import InputError

SHAPE = (6, 5, 3)
NETWORK = Autoencoder(SHAPE, (4, 2))
IMAGES = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)


@functools.cache
def variables():
  """Those of a network that nobody has trained."""
  image, rng = jnp.zeros((1, *SHAPE)), np.random.default_rng(0)
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), image)
  return jax.tree.map(
    lambda a: jnp.asarray(rng.normal(0.1, 0.3, a.shape), jnp.float32), shapes
  )


@functools.cache
def model_of(kind):
  """A model of each sort, its clusters about three of the images."""
  encoder, name = None, 'kmeans' if 'kmeans' in kind else 'gmm'
  if kind != 'kmeans':
    encoder = Encoder(NETWORK, variables(), jnp.ones((1, 1)), 16)
    deviation = encoder.encode(IMAGES).std(axis=0, keepdims=True)
    encoder = encoder._replace(scale=jnp.maximum(deviation, 0.1))
  means = inference.to_points(IMAGES[:3], encoder)
  if name == 'kmeans':
    return Model(SHAPE, name, means, encoder)
  shape = gmm.FAMILIES[kind].shape(*means.shape)
  scales = jnp.ones(shape) if len(shape) == 2 else jnp.eye(shape[1])[None]
  scales = jnp.broadcast_to(scales, shape)
  weights = jnp.log(jnp.array([0.2, 0.3, 0.5]))
  params = GMMParams(weights, means, 0.5 * scales)
  return Model(SHAPE, name, params, encoder)


KINDS = ('kmeans', 'ae_kmeans', *gmm.FAMILIES)


def leave(path, model):
  """Has a directory look like that of a finished run."""
  path.mkdir(exist_ok=True)
  inference.save(path, model)
  (path / 'summary.json').write_text('{}')
  return path


# What is found.


def test_k_means_by_hand():
  """Four pixels of 0.2 are 0.4 from black and 1.6 from white."""
  centers = jnp.array([[0.0] * 4, [1.0] * 4])
  model = Model((2, 2, 1), 'kmeans', centers, None)
  images = np.full((3, 2, 2), [[[51]], [[255]], [[0]]], np.uint8)
  found = model.assess(images)
  np.testing.assert_array_equal(found.labels, [0, 1, 0])
  np.testing.assert_allclose(found.distance, [0.4, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found.confidence, [0.75, 1, 1], atol=1e-6)
  np.testing.assert_array_equal(found.outlier_score, found.distance)
  np.testing.assert_allclose(model.distances(images)[0], [0.4, 1.6], rtol=1e-6)


@pytest.mark.parametrize(
  ('centers', 'expected'), [([0.0], 1.0), ([0.5, 0.5], 0.0), ([0.0, 1.0], 0.0)]
)
def test_confidence_where_there_is_no_other_center_or_one_as_near(
  centers, expected
):
  model = Model((1, 1, 1), 'kmeans', jnp.array(centers)[:, None], None)
  found = model.assess(np.full((1, 1, 1), 0.5))
  np.testing.assert_array_equal(found.confidence, [expected])


def test_a_mixture_by_hand():
  """One pixel; densities 0.25 N(0, 0.5) and 0.75 N(1, 0.25) at 0.6."""
  params = GMMParams(
    jnp.log(jnp.array([0.25, 0.75])),
    jnp.array([[0.0], [1.0]]),
    jnp.array([[0.5], [0.25]]),
  )
  model = Model((1, 1, 1), 'gmm', params, None)
  joint = [
    w / s / math.sqrt(2 * math.pi) * math.exp(-((0.6 - m) ** 2) / (2 * s * s))
    for w, m, s in ((0.25, 0, 0.5), (0.75, 1, 0.25))
  ]
  images = np.full((1, 1, 1, 1), 0.6, np.float32)
  found = model.assess(images)
  np.testing.assert_array_equal(found.labels, [1])
  np.testing.assert_allclose(found.confidence, [joint[1] / sum(joint)], 1e-5)
  np.testing.assert_allclose(found.outlier_score, [-math.log(sum(joint))], 1e-5)
  np.testing.assert_allclose(found.distance, [0.4], 1e-5)
  shares = model.responsibilities(images)
  np.testing.assert_allclose(shares, [np.array(joint) / sum(joint)], 1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_the_parts_of_an_assessment_agree(kind):
  model = model_of(kind)
  found = model.assess(IMAGES)
  assert found.labels.dtype == jnp.int32
  np.testing.assert_array_equal(found.labels[:3], range(3))
  np.testing.assert_array_equal(found.labels, model.predict(IMAGES))
  x = model.encode(IMAGES)
  away = jnp.linalg.norm(x - model.centers[found.labels], axis=1)
  np.testing.assert_allclose(found.distance, away, rtol=1e-3, atol=1e-3)
  if model.clusterer == 'kmeans':
    np.testing.assert_array_equal(
      found.labels, model.distances(IMAGES).argmin(axis=1)
    )
    return
  shares = model.responsibilities(IMAGES)
  np.testing.assert_array_equal(found.labels, shares.argmax(axis=1))
  np.testing.assert_array_equal(found.confidence, shares.max(axis=1))
  scores = gmm.outlier_score(model.clusters, x)
  np.testing.assert_array_equal(found.outlier_score, scores)


def test_bytes_are_the_floats_that_they_stand_for():
  model = model_of('full')
  for dtype in (np.float32, np.float64):
    floats = (IMAGES / 255).astype(dtype)
    np.testing.assert_allclose(
      model.encode(floats), model.encode(IMAGES), atol=1e-5
    )
  grey = Model((6, 5, 1), 'kmeans', jnp.zeros((1, 30)), None)
  np.testing.assert_array_equal(
    grey.encode(IMAGES[..., 0]), grey.encode(IMAGES[..., :1])
  )


def test_any_number_of_images_goes_in_blocks(monkeypatch):
  model = model_of('full')
  whole = model.assess(jnp.asarray(IMAGES))
  monkeypatch.setattr(streaming, '_BLOCK_BYTES', 16 * IMAGES[0].nbytes)
  assert len(list(streaming.blocks(IMAGES))) == 3
  parts = model.assess(IMAGES)
  for part, all_at_once in zip(parts, whole, strict=True):
    np.testing.assert_allclose(part, all_at_once, rtol=1e-5)
  assert model.predict(IMAGES[:1]).shape == (1,)


# And back.


def test_a_decoded_code_is_the_networks_reconstruction():
  model = model_of('full')
  again = NETWORK.apply(variables(), IMAGES.astype(np.float32) / 255)
  assert again.max() > 0
  np.testing.assert_allclose(
    model.decode(model.encode(IMAGES)), jnp.clip(again, 0, 1), atol=1e-5
  )


def test_decoded_pixels_are_the_image():
  model = model_of('kmeans')
  np.testing.assert_allclose(
    model.decode(model.encode(IMAGES)), IMAGES / np.float32(255), atol=1e-6
  )


def test_samples_are_decoded_points_of_the_mixture():
  model, key = model_of('tied'), jax.random.key(1)
  drawn = model.sample(key, 50)
  assert drawn.shape == (50, *SHAPE)
  assert drawn.min() >= 0
  assert drawn.max() <= 1
  codes = gmm.sample(key, model.clusters, 50)
  np.testing.assert_array_equal(drawn, model.decode(codes))


def test_k_means_has_no_responsibilities_and_no_samples():
  model = model_of('kmeans')
  with pytest.raises(InputError, match='no responsibilities: use distances'):
    model.responsibilities(IMAGES)
  with pytest.raises(InputError, match='no samples: use decode'):
    model.sample(jax.random.key(0), 2)
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
  model = model_of(kind)
  loaded = jaxclust.load(str(leave(tmp_path / 'run', model)))
  assert loaded.image_shape == model.image_shape
  assert loaded.clusterer == model.clusterer
  if loaded.encoder is not None:
    assert loaded.encoder.model == model.encoder.model
    assert loaded.encoder.batch_size == model.encoder.batch_size
  if loaded.clusterer == 'gmm':
    assert gmm.family_of(loaded.clusters) == kind
  for a, b in zip(loaded.assess(IMAGES), model.assess(IMAGES), strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


def test_the_file_holds_arrays_alone(tmp_path):
  path = leave(tmp_path / 'run', model_of('full')) / inference.FILE
  with np.load(path, allow_pickle=False) as arrays:
    assert all(arrays[key].dtype.kind in 'if' for key in arrays.files)
    assert arrays['params/encoder_0/kernel'].shape == (3, 3, 3, 4)
    assert arrays['means'].shape == (3, 8)


def test_a_directory_without_a_model_says_why(tmp_path):
  for path in ('', tmp_path / 'none'):
    with pytest.raises(InputError, match='is no directory: name one that'):
      inference.load(path)
  (tmp_path / 'config.json').write_text('{}')
  told = f'no finished run: run its command with --workdir={tmp_path}'
  with pytest.raises(InputError, match=told):
    inference.load(tmp_path)
  (tmp_path / 'summary.json').write_text('{}')
  with pytest.raises(
    InputError, match='only runs of kmeans, ae_kmeans and gmm'
  ):
    inference.load(tmp_path)


def change(**changes):
  """Writes other arrays; None leaves one out."""

  def damage(path):
    with np.load(path) as arrays:
      arrays = dict(arrays) | changes
    arrays = {name: a for name, a in arrays.items() if a is not None}
    with open(path, 'wb') as file:
      np.savez(file, **arrays)

  return damage


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
    (change(format=2), 'has format 2, and this version .* reads format 1'),
    (change(format=None), 'has format None'),
    (change(means=None), 'holds no model'),
    (change(centers=np.ones((0, 8))), 'number of centers is 0'),
    (change(means=np.ones((3, 9))), r'means is float64 \(3, 9\), and not'),
    (change(means=np.ones((3, 8), int)), r'means is int64 \(3, 8\), and not'),
    (change(scale=np.ones((1, 9))), r'scale is \(1, 9\)'),
    (change(scale=np.ones((1, 1), int)), r'scale is int64'),
    (change(scale_tril=np.ones((3, 8, 7))), r'not float \(3, 8, 8\)'),
    (change(features=[4, 3]), 'holds no model'),
    (change(features=[4, 0]), 'features is 0'),
    (change(image_shape=[6, 5]), 'holds no model'),
    (change(image_shape=[6.5, 5, 3]), 'image_shape is 6.5'),
    (change(image_shape=[10**15, 10**15, 3]), 'holds no model'),
    (change(batch_size=0), 'batch_size is 0'),
    (change(features=np.array([{}])), 'cannot be read as .npz .*pickle'),
  ],
)
def test_a_damaged_model_is_named(damage, message, tmp_path):
  path = leave(tmp_path / 'run', model_of('full'))
  damage(path / inference.FILE)
  with pytest.raises(InputError, match=f'model.npz .*{message}') as e:
    inference.load(path)
  assert str(e.value).endswith('run its command again in another directory')
  assert '\n' not in str(e.value)


def test_the_table_keeps_any_name_of_a_file(tmp_path):
  files = ['a,b.png', 'say "x".png', 'two\nlines.png', 'caf\udce9.png']
  values = np.arange(4, dtype=np.float32) / 3
  found = Assessment(np.arange(4, dtype=np.int32), values, -values, 2 * values)
  inference.write_table(tmp_path, {'images': found}, files)
  text = (tmp_path / 'predictions.csv').read_bytes()
  lines = text.decode(errors='surrogateescape').splitlines(keepends=True)
  header, *rows = csv.reader(lines)
  assert ' '.join(header) == 'file cluster confidence outlier_score distance'
  assert [row[0] for row in rows] == files
  table = np.array([row[1:] for row in rows], np.float32)
  columns = np.stack([np.arange(4), values, -values, 2 * values], axis=1)
  np.testing.assert_array_equal(table, columns)


def test_images_without_files_are_numbered_in_their_split(tmp_path):
  part = Assessment(*np.zeros((4, 2), np.float32))
  inference.write_table(tmp_path, {'train': part, 'test': part}, ())
  lines = (tmp_path / 'predictions.csv').read_text().splitlines()
  names = [line.split(',')[0] for line in lines]
  assert names == ['file', 'train/0', 'train/1', 'test/0', 'test/1']


def test_the_typical_members_of_a_cluster_are_its_least_strange():
  labels = np.array([1, 0, 1, 1, 0])
  scores = np.array([3.0, 1.0, -2.0, 3.0, 0.5])
  found = Assessment(labels, None, scores, None)
  rows, titles = inference.typical(found, 3, 2)
  assert [row.tolist() for row in rows] == [[4, 1], [2, 0], []]
  assert titles == ['0 (2)', '1 (3)', '2 (0)']


# The exported program.


ALONE = """
import json, pathlib, sys


class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('jaxclust', 'flax', 'optax', 'orbax'):
      raise ImportError(name)


sys.meta_path.insert(0, Refuse())
import jax.export
import numpy as np

program, images = map(pathlib.Path, sys.argv[1:])
run = jax.export.deserialize(bytearray(program.read_bytes()))
assert run.platforms == ('cpu', 'cuda', 'tpu')
images = np.load(images)
labels = [run.call(images[:n]) for n in (1, 7, len(images))]
assert all(found.dtype == np.int32 for found in labels)
print(json.dumps([found.tolist() for found in labels]))
assert 'jaxclust' not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_an_exported_run_needs_jax_alone(kind, tmp_path):
  model = model_of(kind)
  inference.export(model, tmp_path / 'model.jaxexport')
  np.save(tmp_path / 'images.npy', IMAGES)
  done = subprocess.run(
    [sys.executable, '-I', '-c', ALONE, 'model.jaxexport', 'images.npy'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  labels = np.asarray(model.predict(IMAGES)).tolist()
  assert json.loads(done.stdout) == [labels[:1], labels[:7], labels]


@pytest.mark.slow
def test_points_of_many_features_are_exported_as_well(tmp_path):
  """Beyond 128 features the factors are inverted by LAPACK."""
  means = jnp.stack([jnp.zeros(144), jnp.ones(144)])
  scales = jnp.broadcast_to(jnp.eye(144), (2, 144, 144))
  params = GMMParams(jnp.log(jnp.full(2, 0.5)), means, scales)
  model = Model((12, 12, 1), 'gmm', params, None)
  images = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), np.uint8)
  images[::2] //= 2
  inference.export(model, tmp_path / 'a')
  exported = jax.export.deserialize(bytearray((tmp_path / 'a').read_bytes()))
  found = exported.call(images)
  np.testing.assert_array_equal(found, model.predict(images), strict=True)
  assert set(np.asarray(found).tolist()) == {0, 1}

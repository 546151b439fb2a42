"""Files from strangers: whatever is in them, they are read or refused."""

import contextlib
import io
import json
import struct
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import model_of
from PIL import Image

from jaxclust import checkpoints, data, storage
from jaxclust.data import originals, tfds
from jaxclust.errors import InputError

SETTINGS = hypothesis.settings(
  deadline=None, database=None, max_examples=200, print_blob=True
)


def written(write):
  """The bytes that a function writes to a file."""
  file = io.BytesIO()
  write(file)
  return file.getvalue()


PIXELS = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
NPZ = written(lambda file: np.savez(file, images=PIXELS, labels=np.arange(4)))
NPZ_DEFLATED = written(lambda file: np.savez_compressed(file, images=PIXELS))
NPY = written(lambda file: np.save(file, PIXELS))
PNG, JPEG = (
  written(lambda file, kind=kind: Image.fromarray(PIXELS[0]).save(file, kind))
  for kind in ('png', 'jpeg')
)


@st.composite
def damaged(draw, *originals):
  """One of some files, with bytes changed, put in, left out or cut off."""
  content = bytearray(draw(st.sampled_from(originals)))
  for _ in range(draw(st.integers(1, 4))):
    place = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, 8))
    content[place : place + length] = draw(st.binary(max_size=8))
  return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('strangers')


def load(path):
  """The image set of a path, which is sound; None if it is refused."""
  try:
    dataset = data.load(str(path))
  except InputError:
    return None
  images = dataset.images
  assert images.dtype in (np.uint8, np.float32)
  assert images.ndim == 4
  assert images.size
  assert dataset.labels is None or len(dataset.labels) == len(images)
  return dataset


@SETTINGS
@hypothesis.given(content=damaged(NPZ, NPZ_DEFLATED) | st.binary(max_size=64))
def test_a_damaged_npz_is_read_or_refused(folder, content):
  (folder / 'a.npz').write_bytes(content)
  load(folder / 'a.npz')


@SETTINGS
@hypothesis.given(content=damaged(NPY) | st.binary(max_size=64))
def test_a_damaged_npy_is_read_or_refused(folder, content):
  (folder / 'a.npy').write_bytes(content)
  load(folder / 'a.npy')


@SETTINGS
@pytest.mark.filterwarnings('ignore:images of .* are cast to float32')
@hypothesis.given(
  arrays=st.dictionaries(
    st.sampled_from(['images', 'labels', 'test_images', 'test_labels', 'x']),
    hnp.arrays(
      st.sampled_from([np.uint8, np.float32]) | hnp.scalar_dtypes(),
      hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
    ),
  )
)
def test_an_npz_of_any_arrays_is_read_or_refused(folder, arrays):
  np.savez(folder / 'b.npz', **arrays)
  dataset = load(folder / 'b.npz')
  if dataset is not None:
    images = arrays['images'].astype(dataset.images.dtype)
    np.testing.assert_array_equal(
      dataset.images.reshape(images.shape), images, strict=True
    )


def arrays_of(kind, folder):
  """What the file of a model holds, its recipe apart."""
  storage.save(folder, model_of(kind))
  with np.load(folder / 'model.npz') as file:
    arrays = dict(file)
  return json.loads(str(arrays.pop('recipe'))), arrays


@pytest.fixture(scope='module', params=['kmeans', 'full', 'dec'])
def saved(request, folder):
  return arrays_of(request.param, folder)


NUMBERS = hnp.arrays(
  st.sampled_from([np.float32, np.int64]) | hnp.scalar_dtypes(),
  hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda part: st.lists(part) | st.dictionaries(st.text(), part),
  max_leaves=8,
)
RECIPE = st.sampled_from(
  [
    *('image_shape', 'batch_size', 'clusterer', 'clusterer_options'),
    *('method', 'method_options', 'network'),
  ]
)
VALUES = (
  JSON
  | st.sampled_from(['kmeans', 'gmm', 'autoencoder', 'dec', ''])
  | st.lists(st.integers(-1, 9), max_size=4)
  | st.dictionaries(
    st.sampled_from(['name', 'features', 'num_clusters', 'metric']),
    JSON | st.sampled_from(['conv', 'mlp', 'cosine']),
  )
)


@hypothesis.settings(SETTINGS, max_examples=60)  # of each model
@hypothesis.given(
  number=st.integers(0, 20),
  array=st.none() | NUMBERS,
  changes=st.dictionaries(RECIPE, VALUES, max_size=2),
)
def test_a_model_of_any_arrays_is_loaded_or_refused(
  saved, folder, number, array, changes
):
  recipe, arrays = saved
  names = sorted(arrays)
  arrays = arrays | {'recipe': json.dumps(recipe | changes)}
  if array is not None:
    arrays[names[number % len(names)]] = array
  np.savez(folder / 'model.npz', **arrays)
  (folder / 'summary.json').touch()
  with contextlib.suppress(InputError):
    own = storage.load(folder)
    assert own.decode(own.centers).shape[1:] == own.image_shape


@SETTINGS
@hypothesis.given(content=damaged(PNG, JPEG) | st.binary(max_size=64))
def test_a_damaged_image_is_read_or_refused(folder, content):
  (folder / 'images').mkdir(exist_ok=True)
  (folder / 'images' / 'a.png').write_bytes(content)
  load(folder / 'images')


@SETTINGS
@hypothesis.given(
  shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), draw=st.data()
)
def test_an_idx_file_comes_back(shape, draw):
  array = draw.draw(hnp.arrays(np.uint8, shape))
  header = bytes([0, 0, 8, len(shape)]) + np.array(shape, '>u4').tobytes()
  found = originals._parse_idx(header + array.tobytes())
  np.testing.assert_array_equal(found, array, strict=True)
  with pytest.raises(ValueError, match='cannot reshape'):
    originals._parse_idx(header + array.tobytes() + b'0')


@SETTINGS
@hypothesis.given(content=damaged(bytes(range(40))))
def test_records_are_read_or_refused(folder, content):
  (folder / 'a.tfrecord').write_bytes(content)
  try:
    records = list(tfds._tfrecords(folder / 'a.tfrecord'))
  except (EOFError, struct.error):
    return
  assert sum(len(record) + 16 for record in records) == len(content)


FIELDS = st.sampled_from(['format', 'devices', 'arrays', 'files', 'digest'])


@SETTINGS
@hypothesis.given(
  content=st.dictionaries(FIELDS, st.just(1) | st.just({}) | JSON) | JSON,
  whole=st.booleans(),
)
def test_a_manifest_is_read_or_refused(content, whole):
  if whole and isinstance(content, dict):
    content['digest'] = checkpoints._digest_of(content)
  try:
    manifest = checkpoints.parse_manifest(json.dumps(content).encode())
  except ValueError:
    return
  assert isinstance(manifest['format'], int)
  if manifest['format'] == checkpoints._FORMAT:
    assert isinstance(manifest['files'], dict)
    assert isinstance(manifest['arrays'], dict)


FUZZ = """
import json, sys
import atheris

MODULES = ['jaxclust.data', 'jaxclust.workdir', 'jaxclust.checkpoints']
with atheris.instrument_imports(include=MODULES):
  from jaxclust import checkpoints, workdir
  from jaxclust.data import originals

def idx(content):
  array = originals._parse_idx(content)
  assert array.tobytes() == content[len(content) - array.size:]

def manifest(content):
  found = workdir.parse_object(content)
  found['digest'] = checkpoints._digest_of(found)
  found = checkpoints.parse_manifest(json.dumps(found).encode())
  assert isinstance(found['format'], int)

def run(content):
  try:
    {target}(content)
  except ValueError:
    pass

atheris.Setup(sys.argv, run)
atheris.Fuzz()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'seed'),
  [
    ('idx', b'\0\0\x08\x02\0\0\0\x01\0\0\0\x02ab'),
    (
      'manifest',
      b'{"format": 1, "devices": "a", "arrays": {"a": [[], ""]}, "files": {}}',
    ),
  ],
)
def test_parsers_stand_some_seconds_of_atheris(target, seed, tmp_path):
  pytest.importorskip('atheris', reason='atheris has no build for this system')
  (tmp_path / 'seed').write_bytes(seed)
  done = subprocess.run(
    [
      *(sys.executable, '-c', FUZZ.format(target=target)),
      *('-max_total_time=5', '-rss_limit_mb=8192', '-verbosity=0'),
      *(f'-artifact_prefix={tmp_path}/', str(tmp_path)),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr

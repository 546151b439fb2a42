"""Exported programs: they need JAX alone."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from models import IMAGES, KINDS, mixture_of_pixels, model_of

from jaxclust import gmm, model

pytestmark = pytest.mark.usefixtures('light_compiler')

ALONE = """
import json, pathlib, sys


class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('jaxclust', 'flax', 'optax', 'orbax'):
      raise ImportError(name)


sys.meta_path.insert(0, Refuse())
import jax.export
import numpy as np

jax.config.update('jax_disable_most_optimizations', True)
images = np.load('images.npy')
found = {}
for program in sorted(pathlib.Path().glob('*.jaxexport')):
  run = jax.export.deserialize(bytearray(program.read_bytes()))
  assert run.platforms == ('cpu', 'cuda', 'tpu')
  labels = [run.call(images[:n]) for n in (1, len(images))]
  assert all(part.dtype == np.int32 for part in labels)
  found[program.stem] = [part.tolist() for part in labels]
print(json.dumps(found))
assert 'jaxclust' not in sys.modules
"""


@pytest.mark.slow
def test_an_exported_run_needs_jax_alone(tmp_path):
  np.save(tmp_path / 'images.npy', IMAGES)
  expected = {}
  for kind in KINDS:
    own = model_of(kind)
    model.export(own, tmp_path / f'{kind}.jaxexport')
    labels = np.asarray(own.predict(IMAGES)).tolist()
    expected[kind] = [labels[:1], labels]
  done = subprocess.run(
    [sys.executable, '-I', '-c', ALONE],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout) == expected


@pytest.mark.slow
def test_points_of_many_features_are_exported_as_well(tmp_path):
  """Beyond 128 features the factors are inverted by LAPACK."""
  means = jnp.stack([jnp.zeros(144), jnp.ones(144)])
  scales = jnp.broadcast_to(jnp.eye(144), (2, 144, 144))
  params = gmm.GMMParams(jnp.log(jnp.full(2, 0.5)), means, scales)
  own = mixture_of_pixels((12, 12, 1), params)
  images = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), np.uint8)
  images[::2] //= 2
  model.export(own, tmp_path / 'a')
  exported = jax.export.deserialize(bytearray((tmp_path / 'a').read_bytes()))
  found = exported.call(images)
  np.testing.assert_array_equal(found, own.predict(images), strict=True)
  assert set(np.asarray(found).tolist()) == {0, 1}

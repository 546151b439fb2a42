"""The plan of the house: what may import what, and what runs where."""

import ast
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jaxclust.autoencoder import Autoencoder

import jaxclust
from jaxclust import inference, kmeans, training
from jaxclust.data.augment import Augmentation, Motion

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = [
  {'numerics'},
  {'metrics', 'data', 'layers', 'workdir', 'seeding'},
  {'augmentation', 'streaming', 'stopping', 'figures', 'report'},
  {'kmeans', 'autoencoder', 'page', 'board'},
  {'gmm', 'training'},
  {'peers', 'selection', 'keras_worker', 'fitting', 'estimators'},
  {'benchmark', 'inference'},
  {'experiments'},
]


def imports(path):
  """Names of the modules of the package that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'jaxclust':
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      head, _, name = node.module.partition('.')
      if head == 'jaxclust':
        yield name
    elif isinstance(node, ast.Import):
      for alias in node.names:
        head, _, name = alias.name.partition('.')
        if head == 'jaxclust':
          yield name


def test_modules_import_from_lower_layers_only():
  modules = {p.stem for p in (ROOT / 'jaxclust').glob('*.py')} - {'__init__'}
  assert modules == set().union(*LAYERS)
  lower = set()
  for layer in LAYERS:
    for module in layer:
      found = set(imports(ROOT / 'jaxclust' / f'{module}.py'))
      assert found <= lower, f'{module} imports {found - lower}'
    lower |= layer


def test_configs_import_nothing_of_the_package():
  for path in (ROOT / 'configs').glob('*.py'):
    assert not set(imports(path))


def test_the_top_level_holds_what_it_should():
  tracked = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if tracked.returncode:
    pytest.skip('not a git checkout')
  names = {name.split('/')[0] for name in tracked.stdout.split()}
  visible = {name for name in names if not name.startswith('.')}
  assert visible <= {
    'LICENSE',
    'README.md',
    'configs',
    'jaxclust',
    'launch.py',
    'pyproject.toml',
    'tests',
  }


def test_importing_the_package_is_light():
  code = (
    'import sys, jaxclust\n'
    'heavy = {"sklearn", "orbax", "matplotlib", "tensorflow_datasets",'
    ' "grain", "tensorflow", "torch"} & set(sys.modules)\n'
    'assert not heavy, heavy'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
  assert jaxclust.kmeans is kmeans
  assert jaxclust.load is inference.load


MODEL = Autoencoder((8, 8, 1), (4, 2))
X = jax.ShapeDtypeStruct((64, 6), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((40, 8, 8, 1), jnp.uint8)


def train(key, x):
  images = jnp.zeros(IMAGES.shape, IMAGES.dtype)
  keys = jax.random.split(key, 2)
  state = training.init(keys, MODEL)
  best = training.no_best(state.params)
  every = jnp.arange(len(images), dtype=jnp.int32)
  order = training.draw_order(keys, 0, every, 16)
  state = training.train_steps(
    state,
    images,
    keys,
    order,
    jnp.ones(order.shape[1]),
    model=MODEL.clone(dtype=jnp.bfloat16),
    clip_norm=1.0,
    augmentation=Augmentation(0.1, Motion(1.0, 5.0)),
  )
  options = {'model': MODEL, 'batch_size': 16}
  loss = training.sum_losses(state.params, images, **options)
  params = jax.tree.map(lambda a: a[0], state.params)
  codes = training.encode(params, images, **options)
  return (
    training.keep_best(best, state.params, loss, 1, 2),
    training.decode(params, codes, **options),
  )


def test_training_lowers_for_accelerators():
  key = jax.eval_shape(lambda: jax.random.key(0))
  exported = jax.export.export(jax.jit(train), platforms=['cuda', 'tpu'])(
    key, X
  )
  assert exported.platforms == ('cuda', 'tpu')

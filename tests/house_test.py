"""The plan of the house: what may import what, and what runs where."""

import ast
import functools
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import pytest

import jaxclust
from jaxclust import gmm, inference, kmeans, selection, training
from jaxclust.autoencoder import Autoencoder
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


def fit_kmeans(key, x):
  return kmeans.fit(key, x, num_clusters=3, num_restarts=4)


def fit_gmm(covariance, key, x):
  return gmm.fit(
    key, x, num_components=3, covariance=covariance, num_restarts=2
  )


def fit_by_cosine(key, x):
  return kmeans.fit(
    key, x, num_clusters=3, num_restarts=2, metric='cosine', init='k-means||'
  )


def fit_in_batches(key, x):
  result = kmeans.fit_minibatch(
    key, x, num_clusters=3, batch_size=16, num_batches=5
  )
  mixture = gmm.start(key, x[:32], num_components=3)
  return result, gmm.best(gmm.update(mixture, x[32:]))


def score_kmeans(key, x):
  return (
    kmeans.predict(x[:3], x),
    kmeans.transform(x[:3], x),
    kmeans.score(x[:3], x),
    selection.silhouette(x, jnp.zeros((1, len(x)), jnp.int32), [2]),
  )


def use_gmm(key, x):
  params = fit_gmm('full', key, x).params
  return (
    gmm.predict(params, x),
    gmm.responsibilities(params, x),
    gmm.sample(key, params, 5),
    gmm.outlier_score(params, x),
    gmm.bic(params, x),
    gmm.aic(params, x),
  )


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


ENTRY_POINTS = {
  'kmeans': fit_kmeans,
  'cosine': fit_by_cosine,
  'batches': fit_in_batches,
  'score': score_kmeans,
  **{f: functools.partial(fit_gmm, f) for f in gmm.FAMILIES},
  'use_gmm': use_gmm,
  'training': train,
}


@pytest.mark.parametrize('name', sorted(ENTRY_POINTS.keys() - {'training'}))
def test_clusterers_multiply_in_true_float32(name):
  key = jax.eval_shape(lambda: jax.random.key(0))
  text = jax.jit(ENTRY_POINTS[name]).lower(key, X).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert products
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


MANY = {
  **{
    init: functools.partial(
      kmeans.fit, num_clusters=50, num_restarts=4, init=init
    )
    for init in ('k-means++', 'k-means||')
  },
  'minibatch': functools.partial(kmeans.fit_minibatch, num_clusters=50),
  **{
    covariance: functools.partial(
      gmm.fit, num_components=50, num_restarts=4, covariance=covariance
    )
    for covariance in gmm.FAMILIES
  },
}


@pytest.mark.slow
@pytest.mark.parametrize('name', MANY)
def test_a_fit_needs_a_block_of_memory_and_not_a_copy_of_x(name):
  """Neither N K nor N D numbers, but a few for each point and restart."""
  num_points, num_features = 1_000_000, 64
  x = jax.ShapeDtypeStruct((num_points, num_features), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  compiled = jax.jit(MANY[name]).lower(key, x).compile()
  needed = compiled.memory_analysis().temp_size_in_bytes
  scores = 4 * num_points * 4  # of each point, for four restarts
  block = 4 * 2**20 if jax.default_backend() == 'cpu' else 4 * 2**25
  assert needed < 8 * scores + 4 * block < 4 * num_points * 50


@pytest.mark.parametrize('name', ENTRY_POINTS)
def test_entry_points_lower_for_accelerators(name):
  key = jax.eval_shape(lambda: jax.random.key(0))
  exported = jax.export.export(
    jax.jit(ENTRY_POINTS[name]), platforms=['cuda', 'tpu']
  )(key, X)
  assert exported.platforms == ('cuda', 'tpu')

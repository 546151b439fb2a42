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
from jaxclust import encoding, kmeans, networks, plans, steps, storage, training
from jaxclust.data.augment import from_options
from jaxclust.data.batches import draw_order
from jaxclust.methods import METHODS

ROOT = pathlib.Path(__file__).parent.parent

# Packages and their modules from the lowest to the highest. A package itself,
# its `__init__.py`, comes after its modules.
ORDER = [
  ('', 'errors paths terminal checks memory prefetch programs frames'),
  ('', 'meanings commands defaults layers rows'),
  ('', 'inputs networks signals runtime links processes'),
  ('algorithms', 'consensus neighbors tiles distances solver covariances'),
  ('algorithms', 'lloyd em'),
  ('algorithms', 'seeding prediction densities products pruning runs'),
  ('algorithms', 'minibatches kmeans gmm assignment spreading'),
  ('data', 'originals images tfds folders sources augment batches'),
  ('methods', 'method heads autoencoder dec dcn vade prototypes neighbors'),
  ('methods', 'committee'),
  ('', 'encoding metrics workdir'),
  ('', 'steps plans training checkpoints'),
  ('report', 'console board fonts pictures figures maps explorer page'),
  ('', 'phases model storage selection reliability answers criteria'),
  ('estimators', 'base kmeans minibatch mixture autoencoder'),
  ('', 'tables findings pipeline'),
  ('benchmark', 'contest torch_peer keras_peer peers clusters network'),
  ('benchmark', 'scaling first_call latency'),
  ('', 'predictions comparison records several experiments cli __main__'),
]


def in_order():
  """The modules of `ORDER`, and each package after the last of its modules."""
  last = {package: place for place, (package, _) in enumerate(ORDER)}
  for place, (package, names) in enumerate(ORDER):
    yield from (f'{package}.{name}'.strip('.') for name in names.split())
    if last[package] == place and package:
      yield package
  yield ''  # the package of all


def module_of(path):
  names = path.relative_to(ROOT / 'jaxclust').with_suffix('').parts
  return '.'.join(names[:-1] if names[-1] == '__init__' else names)


MODULES = {module_of(path): path for path in (ROOT / 'jaxclust').rglob('*.py')}


def imports(path):
  """Names of the modules of the package that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path} has a relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      head, _, name = name.partition('.')
      if head == 'jaxclust':
        yield name if name in MODULES else name.rpartition('.')[0]


def test_modules_import_from_lower_ones_only():
  order = list(in_order())
  assert sorted(order) == sorted(MODULES)
  for place, module in enumerate(order):
    higher = set(imports(MODULES[module])) - set(order[:place])
    assert not higher, f'{module} imports {higher}'


def test_configs_import_the_defaults_only():
  for path in (ROOT / 'configs').glob('*.py'):
    assert set(imports(path)) == {'defaults'}


def test_the_top_level_holds_what_it_should():
  tracked = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if tracked.returncode:
    pytest.skip('not a git checkout')
  names = {name.split('/')[0] for name in tracked.stdout.split()}
  visible = {name for name in names if not name.startswith('.')}
  assert visible <= {
    'CHANGELOG.md',
    'CITATION.cff',
    'CONTRIBUTING.md',
    'LICENSE',
    'README.md',
    'configs',
    'docs',
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
  assert jaxclust.load is storage.load


IMAGES = jax.ShapeDtypeStruct((40, 8, 8, 1), jnp.uint8)
CONV = networks.build((8, 8, 1), features=(4, 2))
DENSE = networks.build((8, 8, 1), name='mlp', features=(6, 3))
DEC = functools.partial(METHODS['dec'], num_clusters=4, reconstruction=1.0)


def train(build, network, dtype, key, images):
  method = build(network.clone(dtype=plans.DTYPES[dtype]))
  keys = jax.random.split(key, 2)
  params = jax.vmap(method.init, (0, None))(keys, None)
  zeros = jnp.zeros(2)
  opt_state = jax.vmap(steps.optimizer_of('adam').init)(params)
  state = steps.TrainState(params, opt_state, zeros.astype(jnp.int32), zeros)
  targets = ()
  if method.targets is not None:
    embeddings = jnp.zeros((len(images), method.code_size))
    targets = jax.vmap(method.targets, (0, None, None))(
      params, embeddings, None
    )
  every = jnp.arange(len(images), dtype=jnp.int32)
  order = draw_order(keys, 0, every, 16)
  state = steps.train_steps(
    state,
    images,
    keys,
    order,
    jnp.ones(order.shape[1]),
    method=method,
    targets=targets,
    clip_norm=1.0,
    augmentation=from_options(noise=0.1, max_shift=1.0, max_rotation=5.0),
  )
  own = jax.tree.map(lambda a: a[0], state.params)
  codes = encoding.embed(method, own, images, 16)
  return (
    training.keep_best(
      training.no_best(params), state.params, state.loss_sum, 1, 2
    ),
    encoding.errors(method, own, images, 16),
    encoding.decode(method, own, codes, 16),
  )


TRAININGS = {
  'conv': functools.partial(train, METHODS['autoencoder'], CONV, 'float32'),
  'bfloat16': functools.partial(
    train, METHODS['autoencoder'], CONV, 'bfloat16'
  ),
  'dec': functools.partial(train, DEC, DENSE, 'float32'),
}


@pytest.mark.parametrize('name', TRAININGS)
def test_trainings_lower_for_accelerators_in_true_float32(name):
  key = jax.eval_shape(lambda: jax.random.key(0))
  exported = jax.export.export(
    jax.jit(TRAININGS[name]), platforms=['cuda', 'tpu']
  )(key, IMAGES)
  assert exported.platforms == ('cuda', 'tpu')
  lines = exported.mlir_module().splitlines()
  products = [
    line
    for line in lines
    if 'stablehlo.dot_general' in line or 'stablehlo.convolution' in line
  ]
  assert len(products) > 10
  for line in products:
    assert line.count('HIGHEST') == 2, line

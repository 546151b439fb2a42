"""The file of a model: arrays, and a recipe in JSON.

Axes: N points, D features of a point, d numbers of a place, K clusters.
"""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from jaxclust import data, workdir
from jaxclust.algorithms import spreading
from jaxclust.algorithms.assignment import ALGORITHMS
from jaxclust.algorithms.neighbors import Manifold
from jaxclust.algorithms.spreading import Spread
from jaxclust.checks import check_count
from jaxclust.errors import InputError, one_line
from jaxclust.model import Model, assemble, method_of
from jaxclust.paths import as_path

# Version of the layout of the file.
_FORMAT = 2


def file_of(seed: int) -> str:
  """The file of the model of a seed, by its number among the seeds of a run."""
  return f'model-{seed}.npz' if seed else 'model.npz'


def save(path: pathlib.Path, model: Model, seed: int = 0) -> None:
  """Writes the model of a seed, by its number, into a run directory."""
  parts = {'params': model.params, 'scale': model.scale}
  if model.recipe['clusterer']:
    parts['clusters'] = model.clusters
  if model.recipe['spread']:
    _, parts['spread'] = model.clusters
  if model.manifold is not None:
    parts['manifold'] = model.manifold
  for name in ('outliers', 'curve'):
    if getattr(model, name) is not None:
      parts[name] = getattr(model, name)
  recipe = json.dumps(model.recipe)
  arrays = _flatten(parts)
  workdir.write_arrays(
    path, file_of(seed), format=_FORMAT, recipe=recipe, **arrays
  )


def _flatten(tree):
  return {
    keystr(place, simple=True, separator='/'): leaf
    for place, leaf in tree_leaves_with_path(tree)
  }


def digest(path: str | pathlib.Path) -> str:
  """The SHA-256, in hex, of the first model of a run, from its directory."""
  content = (as_path(path) / file_of(0)).read_bytes()
  return hashlib.sha256(content).hexdigest()


def load(path: str | pathlib.Path, seed: int = 0) -> Model:
  """Loads the model of a finished run from its directory, without its data.

  Args:
    path: of the run directory.
    seed: number of the seed within the run, from 0.

  Raises:
    InputError: if there is no such directory, its run is not finished or leaves
      no model, or the file is damaged.
  """
  if not str(path) or not as_path(path).is_dir():
    raise InputError(
      f'the run {str(path)!r} is not a directory: name that of a finished run, '
      'as runs/autoencoder-gmm-digits-...'
    )
  check_count('seed', seed, low=0)
  path = as_path(path)
  file = path / file_of(seed)
  if not (workdir.is_finished(path) or (path / 'config.json').exists()):
    raise InputError(
      f'{path} holds no run: name the directory of one, as '
      'runs/autoencoder-gmm-digits-...'
    )
  if not workdir.is_finished(path):
    raise InputError(
      f'the run in {path} is not finished: run its command with '
      f'--workdir={path} to the end'
    )
  if not file.exists():
    raise InputError(
      f'{path} holds no {file.name}: runs that cluster leave one for each of '
      'their seeds, which are numbered from 0; name another seed or run'
    )
  remedy = 'run its command again in another directory'
  arrays = data.read_npz(file, remedy)
  if not np.array_equal(arrays.get('format'), _FORMAT):
    raise InputError(
      f'{file} has format {arrays.get("format")}, and this version of jaxclust '
      f'reads format {_FORMAT}: {remedy}'
    )
  try:
    return _parse(arrays)
  except Exception as error:  # a recipe may hold anything
    raise InputError(
      f'{file} does not hold a model ({one_line(error)}): {remedy}'
    ) from error


def _parse(arrays):
  """The model that arrays hold; raises any kind of error if they do not."""
  absent = {'manifold': {}, 'spread': {}}  # of an older recipe
  recipe = absent | workdir.parse_object(str(arrays['recipe']).encode())
  height, width, channels = recipe['image_shape']
  for size in (height, width, channels):
    check_count('a size', size)
  like, num_features = {}, height * width * channels
  if method := method_of(recipe):
    check_count('a size', recipe['batch_size'])
    num_features = method.code_size
    key = jax.eval_shape(lambda: jax.random.key(0))
    like['params'] = jax.eval_shape(lambda key: method.init(key, None), key)
    one_or_each = 1 if arrays['scale'].shape == (1, 1) else num_features
    like['scale'] = _shape(1, one_or_each)
  if manifold := recipe['manifold']:
    num_points = len(arrays['manifold/points'])
    check_count('num_neighbors', manifold['num_neighbors'], high=num_points)
    like['manifold'] = Manifold(
      _shape(num_points, num_features),
      _shape(num_points, manifold['num_features']),
    )
    num_features = manifold['num_features']
  if spread := recipe['spread']:
    num_points, num_clusters = arrays['spread/shares'].shape
    spreading.check(num_points, **spread)
    numbers = arrays['spread/points'].shape[1]
    like['spread'] = Spread(
      _shape(num_features, numbers),
      _shape(num_points, numbers),
      _shape(num_points, num_clusters),
    )
  if recipe['clusterer']:
    clusterer, options = recipe['clusterer'], recipe['clusterer_options']
    like['clusters'] = ALGORITHMS[clusterer].like(num_features, options)
  if 'outliers' in arrays:
    like['outliers'] = _shape(*arrays['outliers'].shape[:1])
  if 'curve' in arrays:
    like['curve'] = _shape(2, arrays['curve'].shape[1])
  model = assemble(recipe, **_fill(like, arrays))
  if model.assigner is None:
    raise ValueError('nothing in it assigns images')
  if spread and len(model.centers) != num_clusters:
    raise ValueError(f'its shares are of {num_clusters} clusters')
  return model


def _shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def _fill(like, arrays):
  """A pytree of shapes with arrays in their places."""
  leaves = []
  for name, shape in _flatten(like).items():
    array = arrays[name]
    if array.shape != shape.shape or array.dtype != shape.dtype:
      raise ValueError(
        f'{name} is {array.dtype} {array.shape}, and not {shape.dtype} '
        f'{shape.shape}'
      )
    leaves.append(jnp.asarray(array))
  return jax.tree.unflatten(jax.tree.structure(like), leaves)

"""Models of every kind, whose networks nobody has trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import gmm, model, pipeline, storage
from jaxclust.algorithms import neighbors
from jaxclust.model import Model

SHAPE = (6, 5, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
KINDS = ('kmeans', 'cosine', 'ae_kmeans', 'mlp_kmeans', 'dec', *gmm.FAMILIES)
KINDS += ('n2d', 'spread', 'committee')


def recipe_of(kind, image_shape=SHAPE):
  """Names and options of a kind."""
  recipe = {
    'image_shape': list(image_shape),
    'clusterer': 'kmeans' if kind in KINDS[:4] else 'gmm',
    'clusterer_options': {'num_components': 3, 'covariance': kind},
    'method': '' if kind in ('kmeans', 'cosine') else 'autoencoder',
    'network': {'name': 'conv', 'features': [4, 2]},
    'method_options': {},
    'batch_size': 16,
    'manifold': {},
    'spread': {},
  }
  if kind in KINDS[:4]:
    metric = 'cosine' if kind == 'cosine' else 'euclidean'
    recipe['clusterer_options'] = {'num_clusters': 3, 'metric': metric}
  if kind == 'mlp_kmeans':
    recipe['network'] = {'name': 'mlp', 'features': [7, 4]}
  if kind in ('dec', 'spread'):
    recipe |= {'clusterer': '', 'clusterer_options': {}, 'method': 'dec'}
    recipe['method_options'] = {'num_clusters': 3}
  if kind == 'n2d':
    recipe['clusterer_options']['covariance'] = 'full'
    recipe['manifold'] = {'num_neighbors': 2, 'num_features': 8}
  if kind == 'committee':
    members = [recipe_of('dec'), recipe_of('dec')]
    members[1]['network'] = {'name': 'mlp', 'features': [7, 4]}
    recipe |= {'clusterer': '', 'method': 'committee', 'members': members}
  if kind in ('spread', 'committee'):
    recipe['spread'] = {'num_neighbors': 3, 'strength': 0.9}
  return recipe


@functools.cache
def model_of(kind):
  """A model of a kind, its clusters about three of the images."""
  recipe, params = recipe_of(kind), None
  one = jnp.asarray(np.ones((1, 1), np.float32))
  if recipe['method']:
    params = _draw_params(model.method_of(recipe))
  own = model.assemble(recipe, params, one)
  points = np.asarray(own.points(IMAGES))
  if kind in ('dec', 'spread'):
    params |= {'centers': jnp.asarray(points[:3])}
    return _spread(model.assemble(recipe, params, one), points)
  if kind == 'committee':
    conv, dense = params['members']
    conv['centers'] = jnp.asarray(points[:3, :8])
    dense['centers'] = jnp.asarray(points[:3, 8:])
    params['names'] = jnp.array([[0, 1, 2], [1, 2, 0]], jnp.int32)
    params['weights'] = jnp.array([0.5, 0.5])
    return _spread(model.assemble(recipe, params, one), points)
  scale = np.ones((1, 1), np.float32)
  if recipe['method']:
    scale = np.maximum(points.std(axis=0, keepdims=True), np.float32(0.1))
    own = own._replace(scale=jnp.asarray(scale))
  if kind == 'n2d':
    manifold = neighbors.embed(points / scale, **recipe['manifold'])
    own = own._replace(manifold=manifold)
    means = np.asarray(own.points(IMAGES))[:3]
    return own._replace(clusters=_clusters('full', means))
  return own._replace(clusters=_clusters(kind, points[:3] / scale))


def _spread(own, x):
  return pipeline.spread(own, jnp.asarray(x), {})


def _draw_params(method):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), None))
  return jax.tree.map(
    lambda a: jnp.asarray(np.float32(rng.normal(0.1, 0.3, a.shape))), shapes
  )


def _clusters(kind, means):
  if kind not in gmm.FAMILIES:
    return jnp.asarray(means)
  shape = gmm.FAMILIES[kind].shape(*means.shape)
  scales = np.ones(shape) if len(shape) == 2 else np.eye(shape[1])[None]
  scales = 0.5 * np.broadcast_to(scales, shape)
  arrays = gmm.GMMParams(np.log([0.2, 0.3, 0.5]), means, scales)
  return jax.tree.map(lambda a: jnp.asarray(np.float32(a)), arrays)


def of_pixels(image_shape, centers, metric='euclidean'):
  """k-means of pixels with given centers `[K, D]`."""
  recipe = recipe_of('kmeans', image_shape)
  recipe['clusterer_options'] = {'num_clusters': len(centers), 'metric': metric}
  return model.assemble(recipe, None, None, jnp.asarray(centers))


def mixture_of_pixels(image_shape, params):
  """A mixture of pixels."""
  recipe = recipe_of('kmeans', image_shape) | {'clusterer': 'gmm'}
  recipe['clusterer_options'] = recipe_of('full')['clusterer_options']
  return model.assemble(recipe, None, None, params)


def leave(path, own: Model):
  """Writes a model into a directory that looks like that of a finished run."""
  path.mkdir(exist_ok=True)
  storage.save(path, own)
  (path / 'summary.json').write_text('{}')
  return path

"""k-means and mixtures as programs: precision, memory, accelerators."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import pytest

from jaxclust import gmm, kmeans, selection

KEY = jax.eval_shape(lambda: jax.random.key(0))
X = jax.ShapeDtypeStruct((64, 6), jnp.float32)


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


ENTRY_POINTS = {
  'kmeans': fit_kmeans,
  'cosine': fit_by_cosine,
  'batches': fit_in_batches,
  'score': score_kmeans,
  **{f: functools.partial(fit_gmm, f) for f in gmm.FAMILIES},
  'use_gmm': use_gmm,
}


@functools.cache
def jitted(name):
  """An entry point that is traced once for several tests."""
  return jax.jit(ENTRY_POINTS[name])


@pytest.mark.parametrize('name', ENTRY_POINTS)
def test_clusterers_multiply_in_true_float32(name):
  text = jitted(name).lower(KEY, X).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert products
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


@pytest.mark.parametrize('name', ENTRY_POINTS)
def test_entry_points_lower_for_accelerators(name):
  export = jax.export.export(jitted(name), platforms=['cuda', 'tpu'])
  exported = export(KEY, X)
  assert exported.platforms == ('cuda', 'tpu')


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
      gmm.fit,
      num_components=50,
      num_restarts=4,
      covariance=covariance,
      init='k-means' if covariance == 'full' else 'random',
    )
    for covariance in gmm.FAMILIES
  },
}


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
@pytest.mark.parametrize('name', MANY)
def test_a_fit_needs_a_block_of_memory_and_not_a_copy_of_x(name):
  """Neither N K nor N D numbers, but a few for each point and restart."""
  num_points, num_features = 1_000_000, 64
  x = jax.ShapeDtypeStruct((num_points, num_features), jnp.float32)
  compiled = jax.jit(MANY[name]).lower(KEY, x).compile()
  needed = compiled.memory_analysis().temp_size_in_bytes
  scores = 4 * num_points * 4  # of each point, for four restarts
  block = 4 * 2**20 if jax.default_backend() == 'cpu' else 4 * 2**25
  assert needed < 8 * scores + 4 * block < 4 * num_points * 50

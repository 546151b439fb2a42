"""Mixtures do not depend on blocks, padding, devices or streams."""

import dataclasses
import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mixtures import FAMILIES, KEY, clusters, params_of
from point_sets import sharded, two_devices

from jaxclust import gmm, inputs
from jaxclust.algorithms import em, solver
from jaxclust.algorithms.em import EM
from jaxclust.frames import Frame
from jaxclust.rows import Rows

X = clusters()[0]


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_pass_in_blocks_is_a_pass_over_the_whole(covariance):
  frame = Frame(np.ones(3, np.float32), np.float32(2))
  rows = Rows(X, np.linspace(0, 1, len(X), dtype=np.float32), frame)

  @jax.jit
  def sums(params, rows):
    mixture = em.Mixture(em.as_runs(params), jnp.zeros(1, jnp.int32))
    return [
      solver.sum_stats(EM, mixture, dataclasses.replace(rows, block_size=size))
      for size in (7, len(X))
    ]

  blocks, whole = sums(params_of(covariance, num_features=3), rows)
  chex.assert_trees_all_close(blocks, whole, rtol=1e-4, atol=1e-3)


def test_densities_in_blocks_are_those_of_the_whole():
  params = params_of('full', num_features=3)
  np.testing.assert_allclose(
    gmm.log_prob(params, X), gmm.log_prob(params, X, block_size=9), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('init', 'padding'),
  [('k-means', 77), ('k-means', 1e15), ('random', 77)],
)
def test_padding_does_not_change_the_fit(init, padding):
  padded = np.concatenate([np.full((30, 3), padding, np.float32), X])
  weight = np.concatenate([np.zeros(30), np.full(len(X), 2.0)])
  fit = functools.partial(gmm.fit, KEY, num_components=3, init=init)
  plain, result = fit(X), fit(padded, sample_weight=weight)
  chex.assert_trees_all_close(result.params, plain.params, rtol=1e-3, atol=1e-3)


def what_a_mixture_says(params, x, weight):
  """Of the families, only densities know."""
  said = {
    'log_prob': gmm.log_prob(params, x),
    'bic': gmm.bic(params, x, weight),
    'aic': gmm.aic(params, x),
  }
  if em.family_of(params) == 'full':
    said['responsibilities'] = gmm.responsibilities(params, x)
    said['labels'] = gmm.predict(params, x)
  return said


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize('covariance', FAMILIES)
def test_two_devices_are_one(covariance, axis_type):
  x = sharded(X, two_devices(axis_type))
  weight = np.linspace(0.5, 1, len(X), dtype=np.float32)
  fit = functools.partial(
    gmm.fit,
    KEY,
    num_components=3,
    num_restarts=2,
    covariance=covariance,
    sample_weight=weight,
  )
  one, two = fit(X), fit(x)
  chex.assert_trees_all_close(two.params, one.params, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(
    two.log_likelihoods, one.log_likelihoods, rtol=1e-5
  )
  expected = what_a_mixture_says(one.params, X, weight)
  for params in (one.params, two.params):
    found = what_a_mixture_says(params, x, weight)
    for name in {'log_prob', 'labels'} & set(found):
      assert found[name].sharding.is_equivalent_to(x.sharding, 1)
    chex.assert_trees_all_close(
      jax.device_get(found), jax.device_get(expected), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('covariance', ['full', 'diag'])
def test_a_mixture_on_two_devices_is_sampled_as_on_one(covariance):
  params = params_of(covariance, num_features=3)
  whole = NamedSharding(two_devices(AxisType.Explicit), PartitionSpec())
  drawn = gmm.sample(KEY, jax.device_put(params, whole), 50)
  np.testing.assert_allclose(drawn, gmm.sample(KEY, params, 50), atol=1e-5)


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_runs_in_parts_on_two_devices_are_those_on_one(axis_type):
  def work(x):
    state = gmm.start(KEY, x, num_components=3, num_restarts=2, init='random')
    state, history = gmm.run(state, x, 2)
    state = gmm.update(state, x)
    return gmm.best(state), history

  found, expected = work(sharded(X, two_devices(axis_type))), work(X)
  chex.assert_trees_all_close(
    jax.device_get(found), jax.device_get(expected), rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_stream_is_an_array_on_the_device(covariance, tmp_path, monkeypatch):
  monkeypatch.setattr(inputs, '_MAPPED_BYTES', 0)
  x = np.memmap(tmp_path / 'x', np.float32, 'w+', shape=X.shape)
  x[:] = X
  init = X[:3] if covariance == 'full' else params_of(covariance, 3, 3)
  fit = functools.partial(
    gmm.fit, KEY, num_components=3, covariance=covariance, init=init
  )
  streamed, whole = fit(x, block_size=150), fit(X)
  chex.assert_trees_all_close(streamed, whole, rtol=1e-3, atol=1e-3)
  found, expected = (what_a_mixture_says(whole.params, a, None) for a in (x, X))
  chex.assert_trees_all_close(
    jax.device_get(found), jax.device_get(expected), rtol=1e-4, atol=1e-4
  )


def test_a_stream_is_fitted_from_its_own_clusters(tmp_path, monkeypatch):
  monkeypatch.setattr(inputs, '_MAPPED_BYTES', 0)
  x = np.memmap(tmp_path / 'x', np.float32, 'w+', shape=X.shape)
  x[:] = X
  streamed = gmm.fit(KEY, x, num_components=3, num_restarts=3)
  whole = gmm.fit(KEY, X, num_components=3, num_restarts=3)
  np.testing.assert_allclose(
    streamed.log_likelihood, whole.log_likelihood, rtol=1e-3
  )


@pytest.mark.parametrize('init', ['k-means', 'random'])
def test_other_sizes_and_options_compile_nothing(init, caplog):
  """Other N and K of the same buckets, other restarts, tolerance and ridge."""

  def compiled(num_points, num_components, key=KEY, **options):
    x, _ = clusters(num_points)
    options = {'covariance': 'diag', 'init': init, **options}
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      result = gmm.fit(key, x, num_components=num_components, **options)
      gmm.predict(result.params, x)
      gmm.log_prob(result.params, x)
    return [text for text in caplog.messages if 'XLA compilation' in text]

  jax.clear_caches()
  assert compiled(400, 3)
  assert not compiled(400, 3)
  assert not compiled(420, 4, tol=1e-2, reg=1e-3, max_steps=99)
  assert not compiled(420, 4, tol=0, reg=1)
  assert not compiled(511, 3, jax.random.key(1), num_restarts=3)

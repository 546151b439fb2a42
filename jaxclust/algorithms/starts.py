"""How runs of EM start: from clusters, from means, or from a mixture.

Axes: N points, D features, K components, R runs (restarts), B rows of a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks
from jaxclust.algorithms import em, kmeans, runs, solver
from jaxclust.algorithms.covariances import (
  FAMILIES,
  factor_with_repair,
  identity,
)
from jaxclust.algorithms.distances import one_hot
from jaxclust.algorithms.em import GMMParams, Mixture
from jaxclust.algorithms.lloyd import assign
from jaxclust.algorithms.solver import Solution
from jaxclust.errors import InputError
from jaxclust.inputs import padded_groups
from jaxclust.rows import Rows, compiled, reduce_rows


def begin(
  key: jax.Array,
  rows: Rows,
  *,
  num_components: int,
  covariance: str,
  num_restarts: int,
  init: Any,
  reg: float,
) -> Solution:
  """Starts R runs on rows in a frame; arguments as for `fit`."""
  size = padded_groups(num_components, rows)
  if isinstance(init, GMMParams):
    params = em.in_frame(em.pad(init, size, rows.dtype), rows.frame)
    mixture = Mixture(em.as_runs(params), jnp.zeros(1, jnp.int32))
  else:
    from_clusters = isinstance(init, str) and init == 'k-means'
    starts = 'k-means++' if from_clusters else init
    if not isinstance(init, str):
      starts = kmeans.centers_in_frame(init, rows)
    state = kmeans.begin(
      key, rows, starts, num_components, num_restarts, to_run=from_clusters
    )
    start_runs = _start_from_means
    if from_clusters:
      state, _ = runs.run_rows(state, rows, max_steps=300, tol=1e-4)
      start_runs = _start_from_clusters
    mixture = solver.each_run(
      lambda params: start_runs(covariance, params, rows, reg),
      state.params,
      checks.is_traced(state, rows),
    )
  return runs.begin(mixture, rows)


@functools.partial(compiled, static=(0,))
def _start_from_clusters(family, clusters, rows, reg):
  """A run whose first responsibilities are the labels of its clusters."""
  moments = reduce_rows(
    _hard_moments(family), clusters, rows, width=clusters.centers.size
  )
  centers, active = em.first_run(clusters)
  shape = FAMILIES[family].shape(*centers.shape)
  scale_tril = identity(shape, centers.dtype)
  log_weights = jnp.where(active, jnp.zeros((), centers.dtype), -jnp.inf)
  params = GMMParams(log_weights, centers, scale_tril)
  return em.as_runs(Mixture(*em.m_step(family, params, moments, reg)))


@functools.cache
def _hard_moments(family):
  def block(clusters, x, weight):
    _, labels = assign(clusters, x)
    centers = clusters.centers[0]
    inside = one_hot(labels, len(centers), x.dtype)
    return em.moments_of(family, inside, weight, centers, x)

  return block


@functools.partial(compiled, static=(0,))
def _start_from_means(family, clusters, rows, reg):
  """A run of equal weights and the data's covariance, with given means."""
  means, active = em.first_run(clusters)
  moments = reduce_rows(_data_moments(family), (), rows, width=rows.shape[1])
  _, covariance = em.means_and_covariance(family, moments)
  scale_tril, repaired = factor_with_repair(FAMILIES[family], covariance, reg)
  shape = FAMILIES[family].shape(*means.shape)
  log_weights = jnp.where(active, -jnp.log(active.sum()), -jnp.inf)
  params = GMMParams(
    log_weights.astype(means.dtype), means, jnp.broadcast_to(scale_tril, shape)
  )
  return em.as_runs(Mixture(params, repaired.sum(dtype=jnp.int32)))


@functools.cache
def _data_moments(family):
  def block(params, x, weight):
    del params
    everyone = jnp.ones((1, len(weight)), x.dtype)
    center = jnp.zeros((1, x.shape[1]), x.dtype)
    return em.moments_of(family, everyone, weight, center, x)

  return block


def check_params(
  params: GMMParams, num_components: int, covariance: str, num_features: int
) -> None:
  """Checks a mixture to start from.

  Raises:
    InputError: if shapes do not fit, or values cannot be of a mixture.
  """
  expected = GMMParams(
    (num_components,),
    (num_components, num_features),
    FAMILIES[covariance].shape(num_components, num_features),
  )
  found = GMMParams(*(tuple(np.shape(a)) for a in params))
  if found != expected:
    raise InputError(
      f'init has the shapes {tuple(found)}: {covariance} needs '
      f'{tuple(expected)}'
    )
  if checks.is_traced(params):
    return
  scales = np.asarray(params.scale_tril)
  if scales.ndim == 3:
    scales = np.diagonal(scales, axis1=1, axis2=2)
  if not all(np.isfinite(a).all() for a in params) or scales.min() <= 0:
    raise InputError(
      'init has values that are not finite, or scales that are not positive: '
      'give the parameters of another fit'
    )

"""Gaussian mixtures by expectation-maximisation (EM).

The density is `p(x) = sum_k w_k N(x; mu_k, L_k L_k^T)`. A covariance is held as
its Cholesky factor, with a shape for each family, see `covariances`: the shape
tells the family (where two agree, so do the densities).

Axes: N points, D features, K components, R runs (restarts), B rows of a block.

References:
  Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via
    the EM algorithm, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
  Bishop (2006), Pattern recognition and machine learning, sections 2.4, 9.2.2
  Cappe and Moulines (2009), Online EM algorithm for latent data models,
    https://doi.org/10.1111/j.1467-9868.2009.00698.x
"""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import checks
from jaxclust.algorithms import em, kmeans, runs, seeding, solver
from jaxclust.algorithms.covariances import FAMILIES, factor_with_repair
from jaxclust.algorithms.distances import one_hot
from jaxclust.algorithms.em import GMMParams, Mixture, family_of
from jaxclust.algorithms.lloyd import assign
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.frames import Frame
from jaxclust.inputs import (
  check_values,
  describe,
  on_any_mesh,
  place,
  weighted_sum,
)
from jaxclust.rows import Rows, compiled, map_rows, reduce_rows

# Steps and mini-batches of a state from `start`.
run = functools.partial(runs.run, max_steps=100, tol=1e-3)
update = functools.partial(runs.update, decay=0.9)


class GMMResult(NamedTuple):
  """The best of the runs, in the data's units, components by falling weight."""

  params: GMMParams
  counts: jax.Array  # [K] weight of the points of each component
  log_likelihood: jax.Array  # [] mean per point
  num_steps: jax.Array  # [] int32
  stop_reason: jax.Array  # [] int32, a StopReason
  num_repaired: jax.Array  # [] int32, larger ridges than reg in the last step
  log_likelihoods: jax.Array  # [R] of all runs

  @property
  def converged(self) -> jax.Array:
    return self.stop_reason == StopReason.CONVERGED


@on_any_mesh
def fit(
  key: jax.Array,
  x: jax.Array,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  max_steps: int = 100,
  tol: float = 1e-3,
  reg: float = 1e-6,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> GMMResult:
  """Fits a mixture by EM, from several starts, and keeps the likeliest.

  Args:
    key: a JAX random key; each restart draws from `fold_in(key, restart)`.
    x: `[N, D]` points.
    num_components: K, at most N.
    covariance: 'full', 'tied', 'diag' or 'spherical'.
    num_restarts: R.
    init: 'k-means' (EM starts from its clusters), 'k-means++' or 'random' (from
      rows, with equal weights and the data's covariance), means `[K, D]` or
      `[R, K, D]` (likewise), or `GMMParams` to go on from.
    max_steps: most steps of a restart.
    tol: a restart has converged when a step gains at most this much mean
      log-likelihood.
    reg: ridge on the covariances, in units of the features' mean variance.
    sample_weight: `[N]` weights; a row of weight 0 changes nothing.
    block_size: rows in a block of a pass, chosen by size if None.

  Returns:
    The run of largest finite likelihood.

  Raises:
    InputError: for input that cannot be fitted.
  """
  check_steps(max_steps, tol)
  options = {'num_components': num_components, 'num_restarts': num_restarts}
  options |= {'covariance': covariance, 'init': init, 'reg': reg}
  rows = _prepare(x, sample_weight, block_size, **options)
  state = begin(key, rows, **options)
  state, _ = runs.run_rows(state, rows, max_steps=max_steps, tol=tol, reg=reg)
  result = best(state)
  warn(result, sample_weight)
  return result


@on_any_mesh
def start(
  key: jax.Array,
  x: jax.Array,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  reg: float = 1e-6,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> Solution:
  """Starts R runs and makes their first E-step; arguments as for `fit`."""
  options = {'num_components': num_components, 'num_restarts': num_restarts}
  options |= {'covariance': covariance, 'init': init, 'reg': reg}
  rows = _prepare(x, sample_weight, block_size, **options)
  return begin(key, rows, **options)


# A step of EM ends on the same options as one of Lloyd's algorithm.
check_steps = kmeans.check_steps


def check_start(
  num_points: int,
  num_features: int,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  reg: float = 1e-6,
) -> None:
  """Checks the options of `start` against the shape of x.

  Raises:
    InputError: if they do not fit.
  """
  checks.check_groups('num_components', num_components, num_points)
  checks.check_count('num_restarts', num_restarts)
  checks.check_number('reg', reg)
  checks.check_choice('covariance', covariance, FAMILIES)
  if isinstance(init, GMMParams):
    _check_params(init, num_components, covariance, num_features)
  elif not isinstance(init, str):
    checks.check_centers('init', init, num_components, num_features)
  elif init not in (names := ('k-means', *seeding.SEEDINGS)):
    raise InputError(
      f'init is {init!r}: it must be one of {", ".join(names)}, means, or '
      'GMMParams'
    )


def best(state: Solution) -> GMMResult:
  """Returns the run of largest finite likelihood, in the data's units."""
  lib = jnp if checks.is_traced(state) else np
  state = jax.tree.map(lib.asarray, state)
  index = solver.best_run(state.objective)
  params, num_repaired = jax.tree.map(lambda a: a[index], state.params)
  order = lib.argsort(-params.log_weights, stable=True)
  if lib is np:
    order = order[: (params.log_weights > -np.inf).sum()]
  scale_tril = params.scale_tril * state.frame.scale
  if len(scale_tril) == len(params.log_weights):
    scale_tril = scale_tril[order]
  likelihoods = in_units(state, -state.objective)
  result = GMMResult(
    params=GMMParams(
      params.log_weights[order],
      state.frame.invert(params.means[order]),
      scale_tril,
    ),
    counts=state.stats.counts[index][order],
    log_likelihood=likelihoods[index],
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    num_repaired=num_repaired,
    log_likelihoods=likelihoods,
  )
  return jax.tree.map(jnp.asarray, result)


def in_units(state: Solution, log_likelihoods: jax.Array) -> jax.Array:
  """Log-likelihoods of a state's coordinates in the data's units."""
  num_features = state.params.params.means.shape[-1]
  return log_likelihoods - num_features * np.log(state.frame.scale)


def log_prob(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Log-densities `[N]` of points `[N, D]`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  return _apply(_log_prob_block, params, x, block_size)


def outlier_score(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Surprises `-log p(x)` `[N]` of points `[N, D]`: higher is stranger.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  return -log_prob(params, x, block_size=block_size)


def responsibilities(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Probabilities `[N, K]` of the components given each point of `[N, D]`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  shares = _apply(_responsibilities_block, params, x, block_size)
  return shares[:, : len(params.log_weights)]


def predict(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Labels `[N]` int32 of the likeliest component of each point of `[N, D]`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  return _apply(_label_block, params, x, block_size)


def sample(key: jax.Array, params: GMMParams, num_samples: int) -> jax.Array:
  """Draws points `[num_samples, D]` from the mixture.

  Raises:
    InputError: if num_samples is no number of points.
  """
  return sample_with_labels(key, params, num_samples)[0]


@functools.partial(jax.jit, static_argnames='num_samples')
def sample_with_labels(
  key: jax.Array, params: GMMParams, num_samples: int
) -> tuple[jax.Array, jax.Array]:
  """The points of `sample`, and the components `[num_samples]` int32 that they
  are drawn from."""
  checks.check_count('num_samples', num_samples, low=0)
  family = FAMILIES[family_of(params)]
  num_components, num_features = params.means.shape
  label_key, noise_key = jax.random.split(key)
  labels = jax.random.categorical(
    label_key, params.log_weights, shape=(num_samples,)
  )
  noise = jax.random.normal(
    noise_key, (num_samples, num_features), params.means.dtype
  )

  def body(k, x):
    scale = params.scale_tril[k % params.scale_tril.shape[0]]
    drawn = params.means[k][None] + family.color(scale, noise)
    return jnp.where((labels == k)[:, None], drawn, x)

  x = lax.fori_loop(0, num_components, body, noise)
  return x, labels.astype(jnp.int32)


def bic(
  params: GMMParams, x: jax.Array, sample_weight: jax.Array | None = None
) -> jax.Array:
  """Bayesian information criterion of the points `[N, D]`; lower is better."""
  weight = weighted_sum(sample_weight, np.ones(len(x), np.float32))
  total = weighted_sum(sample_weight, log_prob(params, x))
  return num_parameters(params) * jnp.log(weight) - 2 * total


def aic(
  params: GMMParams, x: jax.Array, sample_weight: jax.Array | None = None
) -> jax.Array:
  """Akaike information criterion of the points `[N, D]`; lower is better."""
  total = weighted_sum(sample_weight, log_prob(params, x))
  return 2 * num_parameters(params) - 2 * total


def num_parameters(params: GMMParams) -> int:
  """Free numbers of the mixture."""
  num_components, num_features = params.means.shape
  family = FAMILIES[family_of(params)]
  shapes = family.num_parameters(num_components, num_features)
  return shapes + num_components * num_features + num_components - 1


def warn(result: GMMResult, sample_weight: jax.Array | None = None) -> None:
  """Warns of what a concrete result falls short of.

  Args:
    result: of a fit.
    sample_weight: `[N]` its weights, if they were not all 1.
  """
  if checks.is_traced(result):
    return
  num_components, num_features = result.params.means.shape
  messages = []
  family = family_of(result.params)
  counts = result.counts if family == 'full' else result.counts.sum()[None]
  if sample_weight is not None:  # in points instead of weight
    points = float(np.count_nonzero(np.asarray(sample_weight)))
    counts = counts * (points / float(sample_weight.sum()))
  few = int((counts < num_features + 0.5).sum())
  if few and family in ('full', 'tied'):
    messages.append(
      f'{few} of {counts.shape[0]} covariances are rank-deficient: they have '
      f'no more points than the {num_features} features and rest on reg; use '
      "covariance='diag' or fewer components"
    )
  repaired = int(result.num_repaired)
  if repaired:
    messages.append(
      f'{repaired} covariances were singular and got a larger ridge than reg: '
      'raise reg'
    )
  empty = int((result.counts <= 0).sum())
  if empty:
    messages.append(
      f'{empty} of {num_components} components have lost all their points: '
      'use fewer'
    )
  occupied = np.asarray(result.params.means)[np.asarray(result.counts) > 0]
  distinct = len(np.unique(occupied, axis=0))
  if distinct < len(occupied):
    messages.append(
      f'EM found {distinct} distinct of {num_components} components: x has too '
      'few distinct rows, or starts were equal; use fewer, or other starts'
    )
  reason = int(result.stop_reason)
  if reason == StopReason.MAX_STEPS:
    messages.append(
      f'EM did not converge in {int(result.num_steps)} steps: '
      'raise max_steps or tol'
    )
  if reason == StopReason.NONFINITE:
    messages.append(
      'EM stopped: the likelihood is not finite; the last finite parameters '
      'are kept. Raise reg, and look for NaN or very large values in x'
    )
  for message in messages:
    warnings.warn(message, stacklevel=3)


def _prepare(x, sample_weight, block_size, **options):
  """Checked rows in their frame."""
  rows = place(x, sample_weight, block_size=block_size)
  check_start(rows.shape[0] - rows.num_padded, rows.shape[1], **options)
  count = options['num_components']
  checks.check_positive_rows('num_components', count, rows.weight)
  return describe(rows)


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
  size = kmeans.padded_groups(num_components, rows)
  if isinstance(init, GMMParams):
    params = _in_frame(pad(init, size, rows.dtype), rows.frame)
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
  scale_tril = jnp.ones(shape, centers.dtype)
  if len(shape) == 3:
    scale_tril = scale_tril * jnp.eye(shape[-1], dtype=centers.dtype)[None]
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


def pad(params: GMMParams, size: int, dtype: Any) -> GMMParams:
  """A mixture with components of log-weight -inf, up to `size` of them."""
  lib = jnp if checks.is_traced(params) else np
  log_weights, means, scale = (lib.asarray(a).astype(dtype) for a in params)
  extra = size - len(log_weights)
  if not extra:
    return GMMParams(log_weights, means, scale)
  if len(scale) == len(means):
    like = np.ones((extra, *scale.shape[1:]), dtype)
    like = (
      like * np.eye(scale.shape[-1], dtype=dtype) if scale.ndim == 3 else like
    )
    scale = lib.concatenate([scale, like])
  return GMMParams(
    lib.pad(log_weights, (0, extra), constant_values=-np.inf),
    lib.pad(means, ((0, extra), (0, 0))),
    scale,
  )


def _in_frame(params, frame):
  scale_tril = params.scale_tril / frame.scale
  return GMMParams(params.log_weights, frame.apply(params.means), scale_tril)


@on_any_mesh
def _apply(block, params, x, block_size=None):
  """`block(joint [K, B]) -> [B, ...]` of the log-joint of points `[N, D]`."""
  rows = check_values(place(x, block_size=block_size))
  checks.check_features(x, params.means.shape[-1])
  size = kmeans.padded_groups(len(params.log_weights), rows)
  return rows.trim(_map_joint(block, pad(params, size, rows.dtype), rows))


@functools.partial(compiled, static=(0,))
def _map_joint(block, params, rows):
  """`block` of the log-joint about the mean of the means."""
  active = (params.log_weights > -jnp.inf)[:, None]
  offset = jnp.where(active, params.means, 0).sum(axis=0) / active.sum()
  frame = Frame(offset, jnp.ones((), offset.dtype))
  family, params = family_of(params), _in_frame(params, frame)
  return map_rows(
    _joint_block(family, block),
    em.prepare(family, params),
    dataclasses.replace(rows, frame=frame),
    width=params.means.size,
  )


@functools.cache
def _joint_block(family, block):
  return lambda prepared, x: block(em.log_joint(family, prepared, x))


def _log_prob_block(joint):
  return jax.nn.logsumexp(joint, axis=0)


def _responsibilities_block(joint):
  return jax.nn.softmax(joint, axis=0).T


def _label_block(joint):
  return jnp.argmax(joint, axis=0).astype(jnp.int32)


def _check_params(params, num_components, covariance, num_features):
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

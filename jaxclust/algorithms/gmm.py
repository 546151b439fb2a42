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

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxclust import checks
from jaxclust.algorithms import em, lloyd, runs, seeding, solver
from jaxclust.algorithms.covariances import FAMILIES, identity
from jaxclust.algorithms.densities import (
  aic,
  bic,
  log_prob,
  log_responsibilities,
  num_parameters,
  outlier_score,
  predict,
  responsibilities,
  sample,
  sample_with_labels,
)
from jaxclust.algorithms.distances import one_hot
from jaxclust.algorithms.em import EM, GMMParams, Mixture, family_of
from jaxclust.algorithms.lloyd import Clusters, assign
from jaxclust.algorithms.solver import Solution, StopReason
from jaxclust.errors import InputError
from jaxclust.inputs import on_any_mesh, padded_groups, prepare
from jaxclust.programs import compiled
from jaxclust.rows import reduce_rows

__all__ = [
  'GMMParams',
  'GMMResult',
  'aic',
  'best',
  'bic',
  'check',
  'fit',
  'in_units',
  'log_prob',
  'log_responsibilities',
  'num_parameters',
  'outlier_score',
  'predict',
  'responsibilities',
  'run',
  'sample',
  'sample_with_labels',
  'start',
  'suited_family',
  'update',
  'warn',
]

# Steps and mini-batches of a state from `start`.
run = functools.partial(runs.run, max_steps=100, tol=1e-3)
update = functools.partial(runs.update, decay=0.9)


class GMMResult(NamedTuple):
  """The best of the runs, in the data's units.

  Components come by falling weight, or in the order of a given start.
  """

  params: GMMParams
  counts: jax.Array  # [K] weight of the points of each component
  log_likelihood: jax.Array  # [] mean per point
  num_steps: jax.Array  # [] int32
  stop_reason: jax.Array  # [] int32, a StopReason
  num_repaired: jax.Array  # [] int32, larger ridges than reg in the last step
  log_likelihoods: jax.Array  # [R] of all runs
  history: Any = ()  # [S] after 0, 1, ... steps of `fit`, as for `run`

  @property
  def converged(self) -> jax.Array:
    return self.stop_reason == StopReason.CONVERGED


@on_any_mesh
def fit(
  key: jax.Array,
  x: ArrayLike,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  max_steps: int = 100,
  tol: float = 1e-3,
  reg: float = 1e-6,
  sample_weight: ArrayLike | None = None,
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
    max_steps: most steps of a restart; 0 for the start itself.
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
  ends = {'max_steps': max_steps, 'tol': tol}
  options = {'num_components': num_components, 'num_restarts': num_restarts}
  options |= {'covariance': covariance, 'init': init, 'reg': reg}
  rows = _prepare(x, sample_weight, block_size, **options, **ends)
  state = _begin(key, rows, **options)
  ended, history = runs.run_rows(state, rows, reg=reg, **ends)
  result = best(ended, in_order=not isinstance(init, str))
  history = -solver.history_of_best(state, ended, history)
  history = jax.device_put(in_units(ended, history))
  result = result._replace(history=history)
  warn(result, sample_weight)
  return result


@on_any_mesh
def start(
  key: jax.Array,
  x: ArrayLike,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  reg: float = 1e-6,
  sample_weight: ArrayLike | None = None,
  block_size: int | None = None,
) -> Solution:
  """Starts R runs and makes their first E-step; arguments as for `fit`."""
  options = {'num_components': num_components, 'num_restarts': num_restarts}
  options |= {'covariance': covariance, 'init': init, 'reg': reg}
  rows = _prepare(x, sample_weight, block_size, **options)
  state = _begin(key, rows, **options)
  if _is_from_clusters(init):
    state = runs.first_step(state, rows, reg)
  return state


def check(
  num_points: int,
  num_features: int,
  *,
  num_components: int,
  covariance: str = 'full',
  num_restarts: int = 1,
  init: Any = 'k-means',
  reg: float = 1e-6,
  max_steps: int = 100,
  tol: float = 1e-3,
) -> None:
  """Raises an InputError if options of `fit` do not fit the shape of x."""
  checks.check_groups('num_components', num_components, num_points)
  checks.check_count('num_restarts', num_restarts)
  checks.check_number('reg', reg)
  checks.check_count('max_steps', max_steps, low=0)
  checks.check_number('tol', tol)
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


_prepare = functools.partial(prepare, check, 'num_components')


def suited_family(
  num_points: int, num_features: int, num_components: int
) -> str:
  """The richest family of covariances that points carry: each covariance is of
  at least twice as many points as it has dimensions."""
  enough = 2 * num_features
  if num_points >= enough * num_components:
    return 'full'
  return 'tied' if num_points >= enough else 'diag'


def _check_params(params, num_components, covariance, num_features):
  """Checks a mixture to start from."""
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


def best(state: Solution, in_order: bool = False) -> GMMResult:
  """Returns the run of largest finite likelihood, in the data's units.

  Components come by falling weight, or with `in_order` as in the state.
  """
  lib = jnp if checks.is_traced(state) else np
  state = jax.tree.map(lib.asarray, state)
  index = solver.best_run(state.objective)
  params, num_repaired = jax.tree.map(lambda a: a[index], state.params)
  is_there = params.log_weights > -lib.inf
  order = lib.where(is_there, 0, lib.inf) if in_order else -params.log_weights
  order = lib.argsort(order, stable=True)
  if lib is np:
    order = order[: is_there.sum()]
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
  return jax.device_put(result)


def in_units(state: Solution, log_likelihoods: jax.Array) -> jax.Array:
  """Log-likelihoods of a state's coordinates in the data's units."""
  lib = jnp if checks.is_traced(state) else np
  num_features = state.params.num_features
  return log_likelihoods - num_features * lib.log(state.frame.scale)


def warn(result: GMMResult, sample_weight: ArrayLike | None = None) -> None:
  """Warns of what a concrete result of weights `[N]` falls short of."""
  if checks.is_traced(result):
    return
  result = jax.tree.map(np.asarray, result)
  num_components, num_features = result.params.means.shape
  family = family_of(result.params)
  counts = result.counts if family == 'full' else result.counts.sum()[None]
  if sample_weight is not None:  # in points instead of weight
    weight = np.asarray(sample_weight)
    counts = counts * (np.count_nonzero(weight) / float(weight.sum()))
  few = int((counts < num_features + 0.5).sum())
  if few and family in ('full', 'tied'):
    checks.warn(
      f'{few} of {counts.shape[0]} covariances are rank-deficient: they have '
      f'no more points than the {num_features} features and rest on reg; use '
      "covariance='diag' or fewer components"
    )
  repaired = int(result.num_repaired)
  if repaired:
    checks.warn(
      f'{repaired} covariances were singular and got a larger ridge than reg: '
      'raise reg'
    )
  empty = int((result.counts <= 0).sum())
  if empty:
    checks.warn(
      f'{empty} of {num_components} components have lost all their points: '
      'use fewer'
    )
  occupied = result.params.means[result.counts > 0]
  distinct = len(np.unique(occupied, axis=0))
  if distinct < len(occupied):
    checks.warn(
      f'EM found {distinct} distinct of {num_components} components: x has too '
      'few distinct rows, or starts were equal; use fewer, or other starts'
    )
  reason = int(result.stop_reason)
  if reason == StopReason.MAX_STEPS and result.num_steps > 0:
    checks.warn(
      f'EM did not converge in {int(result.num_steps)} steps: '
      'raise max_steps or tol'
    )
  if reason == StopReason.NONFINITE:
    checks.warn(
      'EM stopped: the likelihood is not finite; the last finite parameters '
      'are kept. Raise reg, and look for NaN or very large values in x'
    )


def _begin(key, rows, num_components, covariance, num_restarts, init, reg):
  """Starts R runs on rows in a frame; arguments as for `fit`."""
  checks.check_key(key)
  if isinstance(init, GMMParams):
    size = padded_groups(num_components, rows)
    params = em.in_frame(em.pad(init, size, rows.dtype), rows.frame)
    mixture = Mixture(em.as_runs(params), jnp.zeros(1, jnp.int32))
    return solver.begin(EM, mixture, rows)
  if _is_from_clusters(init):
    calls = _calls_of(covariance, num_components, rows)
    state = runs.seeded(
      key, rows, num_components, num_restarts, 'k-means++', *calls
    )
    state, _ = runs.run_rows(state, rows, max_steps=300, tol=1e-4)
    found = solver.each_run(
      lambda one: _from_clusters(covariance, one, rows),
      state.params,
      checks.is_traced(state.params, rows),
    )
    return solver.before(*found, rows)
  clusters = seeding.seed(key, rows, num_components, num_restarts, init)
  mixture = solver.each_run(
    lambda one: _from_means(covariance, one, rows, checks.as_number(reg)),
    clusters,
    checks.is_traced(clusters, rows),
  )
  return solver.begin(EM, mixture, rows)


def _is_from_clusters(init):
  return isinstance(init, str) and init == 'k-means'


def _calls_of(covariance, num_components, rows):
  """The calls that follow k-means, for `programs.compiling`."""
  if rows.is_streamed:
    return ()
  blank = lloyd.blank(num_components, 1, rows)
  begin = functools.partial(_from_clusters, covariance)
  state = solver.before(*jax.eval_shape(begin, blank, rows), rows)
  return (
    (_from_clusters, covariance, blank, rows),
    runs.steps_of(state, rows),
  )


@functools.partial(compiled, static=(0,))
def _from_clusters(family, clusters, rows):
  """A run at the centers of clusters, and the moments of their labels."""
  centers, active = em.first_run(clusters)
  scale_tril = identity(FAMILIES[family].shape(*centers.shape), centers.dtype)
  log_weights = jnp.where(active, jnp.zeros((), centers.dtype), -jnp.inf)
  params = GMMParams(log_weights, centers, scale_tril)
  moments = reduce_rows(_moments_of_labels, params, rows, width=centers.size)
  return em.as_runs((Mixture(params, jnp.zeros((), jnp.int32)), moments))


def _moments_of_labels(params, x, weight):
  active = params.log_weights > -jnp.inf
  _, labels = assign(Clusters(params.means[None], active[None]), x)
  inside = one_hot(labels, len(active), x.dtype)
  return em.moments_of(params, inside, weight, x)


@functools.partial(compiled, static=(0,))
def _from_means(family, clusters, rows, reg):
  """A run of equal weights and the data's covariance, with given means."""
  means, active = em.first_run(clusters)
  shape = FAMILIES[family].shape
  one = GMMParams(  # component, which takes all points
    jnp.zeros(1, means.dtype),
    jnp.zeros_like(means[:1]),
    identity(shape(1, means.shape[1]), means.dtype),
  )
  moments = solver.sum_stats(EM, Mixture(em.as_runs(one), ()), rows)
  one, num_repaired = em.m_step(one, em.first_run(moments), reg)
  log_weights = jnp.where(active, -jnp.log(active.sum()), -jnp.inf)
  scale_tril = jnp.broadcast_to(one.scale_tril, shape(*means.shape))
  params = GMMParams(log_weights.astype(means.dtype), means, scale_tril)
  return em.as_runs(Mixture(params, num_repaired))

"""Gaussian mixtures by expectation-maximisation (EM).

The density is `p(x) = sum_k w_k N(x; mu_k, L_k L_k^T)`. The E-step sums the
moments of the responsibilities about the current means, block by block; they
add up over blocks, batches and devices. The M-step takes the parameters from
them. A covariance is held as its Cholesky factor, with a shape for each family:

  full       [K, D, D]   a matrix for each component
  tied       [1, D, D]   one matrix for all
  diag       [K, D]      a standard deviation for each component and feature
  spherical  [K, 1]      one for each component

so that the shape tells the family (where two agree, so do the densities).

Axes: N points, D features, K components, R restarts, B rows of a block.

References:
  Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via
    the EM algorithm, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
  Bishop (2006), Pattern recognition and machine learning, sections 2.4, 9.2.2
  Cappe and Moulines (2009), Online EM algorithm for latent data models,
    https://doi.org/10.1111/j.1467-9868.2009.00698.x
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import kmeans, numerics, seeding
from jaxclust.numerics import PRECISION, Frame, InputError, StopReason

# Up to this many features a loop over columns is as fast as LAPACK.
_SMALL_MATRIX = 128

# Products are used where their rounding changes a log-density by less.
_TRUSTED = 1e-4


class GMMParams(NamedTuple):
  """A mixture of Gaussians."""

  log_weights: jax.Array  # [K]
  means: jax.Array  # [K, D]
  scale_tril: jax.Array  # [K, D, D], [1, D, D], [K, D] or [K, 1]


class Moments(NamedTuple):
  """Sums over points of responsibilities and of moments about the means."""

  counts: jax.Array  # [K]
  first: jax.Array  # [K, D]
  second: jax.Array  # as scale_tril


class GMMState(NamedTuple):
  """R runs of EM, in the coordinates of a frame.

  Moments and likelihood are those of the parameters beside them.
  """

  frame: Frame
  params: GMMParams  # [R, ...]
  moments: Moments  # [R, ...]
  log_likelihood: jax.Array  # [R] mean per point
  num_steps: jax.Array  # [R] int32
  stop_reason: jax.Array  # [R] int32, a StopReason
  num_repaired: jax.Array  # [R] int32, larger ridges than reg in the last step


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


class Products(NamedTuple):
  """The functions that turn the E-step of a family into matrix products.

  The log-joint is linear in statistics of the points, the first D of which are
  the points themselves, as densities are of an exponential family.
  """

  center: Callable  # precision, means -> [D] where statistics cancel least
  natural: Callable  # precision, means -> coefficients [K, F]
  statistics: Callable  # x [B, D] -> [B, F]


class Family(NamedTuple):
  """The functions in which one family of covariances differs from others."""

  shape: Callable  # (K, D) -> shape of scale_tril
  num_parameters: Callable  # (K, D) -> free numbers in all covariances
  precision: Callable  # scale_tril -> its inverse
  log_det: Callable  # scale_tril -> [K] or [1]
  whiten: Callable  # precision, means, x [B, D] -> [K, B, D]
  color: Callable  # one component's scale, noise [B, D] -> [B, D]
  scatter: Callable  # responsibilities [K, B], weight [B], means, x -> second
  recenter: Callable  # second, moved [K, D], shift [K, D] -> second
  factor: Callable  # covariance, ridge -> scale_tril, which are sound
  products: Products | None = None


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
  x, sample_weight = numerics.check_points(x, sample_weight)
  state = start(
    key,
    x,
    num_components=num_components,
    covariance=covariance,
    num_restarts=num_restarts,
    init=init,
    reg=reg,
    sample_weight=sample_weight,
    block_size=block_size,
  )
  state, _ = run(
    state,
    x,
    max_steps=max_steps,
    tol=tol,
    reg=reg,
    sample_weight=sample_weight,
    block_size=block_size,
  )
  result = best(state)
  warn(result, sample_weight)
  return result


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
) -> GMMState:
  """Starts R runs and makes their first E-step; arguments as for `fit`."""
  x, sample_weight = numerics.check_points(x, sample_weight)
  check_start(
    *x.shape,
    num_components=num_components,
    covariance=covariance,
    num_restarts=num_restarts,
    init=init,
    reg=reg,
  )
  numerics.check_rows('num_components', num_components, sample_weight)
  options = {'sample_weight': sample_weight, 'block_size': block_size}
  if isinstance(init, GMMParams):
    dtype = numerics.float_dtype(x)
    init = GMMParams(*(jnp.asarray(a).astype(dtype) for a in init))
    return _start_from_params(init, x, sample_weight, block_size=block_size)
  from_clusters = isinstance(init, str) and init == 'k-means'
  state = kmeans.start(
    key,
    x,
    num_clusters=num_components,
    num_restarts=num_restarts,
    init='k-means++' if from_clusters else init,
    **options,
  )
  start_runs = _start_from_means
  if from_clusters:
    state, _ = kmeans.run(state, x, **options)
    start_runs = _start_from_clusters
  return start_runs(
    state.centers,
    state.frame,
    x,
    sample_weight,
    reg,
    family=covariance,
    block_size=block_size,
  )


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
  numerics.check_count('num_components', num_components)
  numerics.check_count('num_restarts', num_restarts)
  numerics.check_number('reg', reg)
  if covariance not in FAMILIES:
    raise InputError(
      f'covariance is {covariance!r}: it must be one of {", ".join(FAMILIES)}'
    )
  if num_components > num_points:
    raise InputError(
      f'num_components is {num_components}, but x has only {num_points} rows: '
      'ask for at most as many components as rows'
    )
  if isinstance(init, GMMParams):
    _check_params(init, num_components, covariance, num_features)
  elif not isinstance(init, str):
    kmeans.check_centers('init', init, num_components, num_features)
  elif init not in (names := ('k-means', *seeding.SEEDINGS)):
    raise InputError(
      f'init is {init!r}: it must be one of {", ".join(names)}, means, or '
      'GMMParams'
    )


@functools.partial(jax.jit, static_argnames=('num_steps', 'block_size'))
def run(
  state: GMMState,
  x: jax.Array,
  num_steps: int | None = None,
  *,
  max_steps: int = 100,
  tol: float = 1e-3,
  reg: float = 1e-6,
  sample_weight: jax.Array | None = None,
  block_size: int | None = None,
) -> tuple[GMMState, jax.Array]:
  """Makes further steps of every run that has not stopped.

  Args:
    state: R runs, from `start` or `run`.
    x: `[N, D]` the same points.
    num_steps: most steps of this call; None to go on until all have stopped.
    max_steps: most steps of a run over all calls.
    tol: as for `fit`.
    reg: as for `fit`.
    sample_weight: `[N]` or None.
    block_size: as for `fit`.

  Returns:
    The new state, and the mean log-likelihood after each step
    `[num_steps, R]` (of no steps if num_steps is None), as the state has it; a
    run that has stopped repeats its last one.
  """
  numerics.check_features(x, state.params.means.shape[-1])
  square = None
  if family_of(state.params) == 'tied':
    square = total_square(x, sample_weight, state.frame, block_size)
  advance = functools.partial(
    step,
    x=x,
    sample_weight=sample_weight,
    tol=tol,
    reg=reg,
    block_size=block_size,
    square=square,
  )
  num_rows, limit = 0, jnp.broadcast_to(max_steps, state.num_steps.shape)
  if num_steps is not None:
    num_rows, limit = num_steps, jnp.minimum(limit, state.num_steps + num_steps)
  state, history = _iterate(advance, state, limit, num_rows)
  return numerics.mark_out_of_steps(state, max_steps), history


def step(
  state: GMMState,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  tol: float = 1e-3,
  reg: float = 1e-6,
  block_size: int | None = None,
  square: jax.Array | None = None,
) -> GMMState:
  """One M-step and one E-step of a single run (a state without R).

  A run whose likelihood is not finite keeps its parameters and stops.
  Arguments as for `run`; `square` as for `e_step`.
  """
  x, sample_weight = numerics.as_arrays(x, sample_weight)
  params, num_repaired = m_step(state.params, state.moments, reg)
  moments, log_likelihood = e_step(
    params, x, sample_weight, state.frame, block_size, square
  )
  gain = log_likelihood - state.log_likelihood
  reason = jnp.where(gain <= tol, StopReason.CONVERGED, StopReason.RUNNING)
  return _if_finite(
    GMMState(
      frame=state.frame,
      params=params,
      moments=moments,
      log_likelihood=log_likelihood,
      num_steps=state.num_steps + 1,
      stop_reason=reason.astype(jnp.int32),
      num_repaired=num_repaired,
    ),
    state,
  )


def update(
  state: GMMState,
  x: jax.Array,
  sample_weight: jax.Array | None = None,
  *,
  decay: float = 0.9,
  reg: float = 1e-6,
  block_size: int | None = None,
) -> GMMState:
  """Takes one more batch of points into account (stepwise EM).

  An M-step from the moments so far, an E-step on the batch, whose moments are
  added (Cappe and Moulines 2009). For data that come in parts: `start` on the
  first batch, `update` with each, `best` at the end.

  Args:
    state: R runs, from `start` or `update`.
    x: `[B, D]` a batch, in the units of the others; any size (a new size
      compiles anew; rows of weight 0 fill a batch up).
    sample_weight: `[B]` or None.
    decay: what the moments before this batch weigh now; 1 forgets nothing.
    reg: as for `fit`.
    block_size: as for `fit`.

  Returns:
    The new state; its likelihood is that of the batch. It does not converge:
    batches differ, so that it is for the caller to end.

  Raises:
    InputError: if shapes do not fit or decay is not from 0 to 1.
  """
  numerics.check_number('decay', decay, high=1)
  return _update(state, x, sample_weight, decay, reg, block_size=block_size)


@functools.partial(jax.jit, static_argnames='block_size')
def _update(state, x, sample_weight, decay, reg, *, block_size):
  numerics.check_features(x, state.params.means.shape[-1])
  x, sample_weight = numerics.as_arrays(x, sample_weight)

  def update_one(state):
    family = FAMILIES[family_of(state.params)]
    params, num_repaired = m_step(state.params, state.moments, reg)
    before = _recenter(family, state.moments, params.means - state.params.means)
    batch, log_likelihood = e_step(
      params, x, sample_weight, state.frame, block_size
    )
    log_likelihood = jnp.where(
      sample_weight.sum() > 0, log_likelihood, state.log_likelihood
    )
    moved = state._replace(
      params=params,
      moments=jax.tree.map(lambda a, b: decay * a + b, before, batch),
      log_likelihood=log_likelihood,
      num_steps=state.num_steps + 1,
      num_repaired=num_repaired,
    )
    return _if_finite(moved, state), ()

  return _map_runs(update_one, state)[0]


def _if_finite(new, old):
  """A run's new state, unless its likelihood is not finite: then it stops."""
  stuck = old._replace(
    stop_reason=jnp.full_like(old.stop_reason, StopReason.NONFINITE)
  )
  finite = jnp.isfinite(new.log_likelihood)
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, stuck)


def e_step(
  params: GMMParams,
  x: jax.Array,
  sample_weight: jax.Array,
  frame: Frame,
  block_size: int | None = None,
  square: jax.Array | None = None,
) -> tuple[Moments, jax.Array]:
  """Moments of all points, and their mean log-likelihood.

  Args:
    params: K components in the frame.
    x: `[N, D]` in the data's units.
    sample_weight: `[N]`.
    frame: coordinates of params.
    block_size: rows in a block, chosen by size if None.
    square: `[D, D]` from `total_square` (for the tied family, to save time).
  """
  family = FAMILIES[family_of(params)]
  precision = family.precision(params.scale_tril)
  rows = x, sample_weight, frame, block_size

  def by_differences():
    return _e_step_by_differences(params, precision, *rows)

  if family.products is None or (family is FAMILIES['tied'] and square is None):
    return by_differences()
  center = family.products.center(precision, params.means)
  white = family.whiten(precision, params.means, center[None])
  lengths = jnp.square(white).sum(axis=(1, 2))
  terms = lengths.max()
  if square is not None:
    spread = jnp.sqrt(jnp.diagonal(square) / sample_weight.sum())
    inverse = numerics.dot(precision[0].T, precision[0])
    inverse = inverse * spread[None] * spread[:, None]
    terms = jnp.maximum(terms, jnp.sqrt(jnp.square(inverse).sum()))
  return lax.cond(
    jnp.finfo(terms.dtype).eps * terms < _TRUSTED,
    lambda: _e_step_by_products(
      params, precision, center, lengths, square, *rows
    ),
    by_differences,
  )


def total_square(
  x: jax.Array,
  sample_weight: jax.Array | None,
  frame: Frame,
  block_size: int | None = None,
) -> jax.Array:
  """The weighted sum `[D, D]` of `x x^T` in the frame: no step changes it."""
  x, sample_weight = numerics.as_arrays(x, sample_weight)

  def part(x, weight):
    x = _weighed_rows(frame.enter(x), weight)
    return numerics.dot((x * weight[:, None]).T, x)

  block_size = _block_rows(x, 2, block_size)
  return numerics.sum_blocks(part, x, sample_weight, block_size)


def m_step(
  params: GMMParams, moments: Moments, reg: jax.Array
) -> tuple[GMMParams, jax.Array]:
  """Parameters that maximise the expected likelihood, given the moments.

  A component that has lost all its points keeps its place and its shape. A
  covariance that is singular in spite of the ridge gets the first of a growing
  series of ridges that makes it sound.

  Returns:
    The parameters, and how many covariances were repaired, `[]` int32.
  """
  family = FAMILIES[family_of(params)]
  counts = moments.counts
  occupied = counts > 0
  shift, covariance = _means_and_covariance(family, moments)
  scale_tril, repaired = _factor_with_repair(family, covariance, reg)
  if scale_tril.shape[0] == counts.shape[0]:
    repaired = repaired & occupied
    scale_tril = jnp.where(
      _along(occupied, scale_tril), scale_tril, params.scale_tril
    )
  weights = jnp.maximum(counts / counts.sum(), jnp.finfo(counts.dtype).tiny)
  params = GMMParams(jnp.log(weights), params.means + shift, scale_tril)
  return params, repaired.sum(dtype=jnp.int32)


def in_units(state: GMMState, scores: jax.Array) -> jax.Array:
  """Log-likelihoods of a state or of `run` in the data's units."""
  num_features = state.params.means.shape[-1]
  return scores - num_features * jnp.log(state.frame.scale)


@jax.jit
def best(state: GMMState) -> GMMResult:
  """Returns the run of largest finite likelihood, in the data's units."""
  index = numerics.best_finite(-state.log_likelihood)
  params = jax.tree.map(lambda a: a[index], state.params)
  counts = state.moments.counts[index]
  order = jnp.argsort(-params.log_weights, stable=True)
  scale_tril = params.scale_tril * state.frame.scale
  if scale_tril.shape[0] == order.shape[0]:
    scale_tril = scale_tril[order]
  likelihoods = in_units(state, state.log_likelihood)
  return GMMResult(
    params=GMMParams(
      params.log_weights[order],
      state.frame.leave(params.means[order]),
      scale_tril,
    ),
    counts=counts[order],
    log_likelihood=likelihoods[index],
    num_steps=state.num_steps[index],
    stop_reason=state.stop_reason[index],
    num_repaired=state.num_repaired[index],
    log_likelihoods=likelihoods,
  )


def log_prob(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Log-densities `[N]` of points `[N, D]`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  joint = _log_joint_of(params, x, block_size)
  return jax.nn.logsumexp(joint, axis=1)


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
  return jax.nn.softmax(_log_joint_of(params, x, block_size), axis=1)


def predict(
  params: GMMParams, x: jax.Array, *, block_size: int | None = None
) -> jax.Array:
  """Labels `[N]` int32 of the likeliest component of each point of `[N, D]`.

  Raises:
    InputError: if shapes do not fit or x is not finite.
  """
  joint = _log_joint_of(params, x, block_size)
  return jnp.argmax(joint, axis=1).astype(jnp.int32)


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
  numerics.check_count('num_samples', num_samples, low=0)
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
  total, weight = _total_log_prob(params, x, sample_weight)
  return num_parameters(params) * jnp.log(weight) - 2 * total


def aic(
  params: GMMParams, x: jax.Array, sample_weight: jax.Array | None = None
) -> jax.Array:
  """Akaike information criterion of the points `[N, D]`; lower is better."""
  total, _ = _total_log_prob(params, x, sample_weight)
  return 2 * num_parameters(params) - 2 * total


def num_parameters(params: GMMParams) -> int:
  """Free numbers of the mixture."""
  num_components, num_features = params.means.shape
  family = FAMILIES[family_of(params)]
  shapes = family.num_parameters(num_components, num_features)
  return shapes + num_components * num_features + num_components - 1


def family_of(params: GMMParams) -> str:
  """The name of the family, from the shape of the factors."""
  num_runs = params.means.ndim - 2  # axes in front of a mixture's own
  shape = params.scale_tril.shape[num_runs:]
  if len(shape) == 3:
    return 'full' if shape[0] == params.means.shape[-2] else 'tied'
  return 'spherical' if shape[1] == 1 else 'diag'


def warn(result: GMMResult, sample_weight: jax.Array | None = None) -> None:
  """Warns of what a concrete result falls short of.

  Args:
    result: of a fit.
    sample_weight: `[N]` its weights, if they were not all 1.
  """
  if isinstance(result.log_likelihood, jax.core.Tracer):
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


@functools.partial(jax.jit, static_argnames=('family', 'block_size'))
def _start_from_clusters(
  centers, frame, x, sample_weight, reg, *, family, block_size
):
  """Runs whose first responsibilities are the labels of centers `[R, K, D]`."""
  functions = FAMILIES[family]
  num_components, num_features = centers.shape[1:]
  shape = functions.shape(num_components, num_features)

  def start_one(centers):
    def part(x, weight):
      x = frame.enter(x)
      norms = jnp.square(x).sum(axis=1)
      squared = numerics.squared_distances(x, centers, norms)
      _, labels = numerics.nearest(squared[None])
      members = numerics.members(labels, num_components, x.dtype)
      return _moments(functions, members, weight, centers, x)

    moments = numerics.sum_blocks(
      part, x, sample_weight, _block_rows(x, num_components, block_size)
    )
    scale_tril = jnp.ones(shape, centers.dtype)
    if len(shape) == 3:
      scale_tril = scale_tril * jnp.eye(num_features, dtype=centers.dtype)[None]
    equal = jnp.zeros(num_components, centers.dtype)
    return m_step(GMMParams(equal, centers, scale_tril), moments, reg)

  params, num_repaired = lax.map(start_one, centers)
  return _first_state(params, num_repaired, x, sample_weight, frame, block_size)


@functools.partial(jax.jit, static_argnames=('family', 'block_size'))
def _start_from_means(
  means, frame, x, sample_weight, reg, *, family, block_size
):
  """Runs with means `[R, K, D]`, equal weights and the data's covariance."""
  functions = FAMILIES[family]
  num_restarts, num_components, num_features = means.shape
  center = jnp.zeros((1, num_features), means.dtype)

  def part(x, weight):
    x = frame.enter(x)
    everyone = jnp.ones((1, x.shape[0]), x.dtype)
    return _moments(functions, everyone, weight, center, x)

  moments = numerics.sum_blocks(
    part, x, sample_weight, _block_rows(x, 1, block_size)
  )
  _, covariance = _means_and_covariance(functions, moments)
  scale_tril, repaired = _factor_with_repair(functions, covariance, reg)
  shape = functions.shape(num_components, num_features)
  equal = jnp.full(means.shape[:2], -math.log(num_components), means.dtype)
  params = GMMParams(
    equal,
    means,
    jnp.broadcast_to(scale_tril[None], (num_restarts, *shape)),
  )
  num_repaired = jnp.full(num_restarts, repaired.sum(), jnp.int32)
  return _first_state(params, num_repaired, x, sample_weight, frame, block_size)


@functools.partial(jax.jit, static_argnames='block_size')
def _start_from_params(params, x, sample_weight, *, block_size):
  """One run that goes on from given parameters, in the data's units."""
  frame = numerics.find_frame(x, sample_weight, _block_rows(x, 1, block_size))
  params = GMMParams(
    params.log_weights,
    frame.enter(params.means),
    params.scale_tril / frame.scale,
  )
  params = jax.tree.map(lambda a: a[None], params)
  none = jnp.zeros(1, jnp.int32)
  return _first_state(params, none, x, sample_weight, frame, block_size)


def _first_state(params, num_repaired, x, sample_weight, frame, block_size):
  """The state of runs that stand at params `[R, ...]` in the frame."""
  moments, log_likelihood = lax.map(
    lambda params: e_step(params, x, sample_weight, frame, block_size), params
  )
  steps = jnp.zeros_like(num_repaired)
  reason = jnp.where(
    jnp.isfinite(log_likelihood), StopReason.RUNNING, StopReason.NONFINITE
  )
  return GMMState(
    frame=frame,
    params=params,
    moments=moments,
    log_likelihood=log_likelihood,
    num_steps=steps,
    stop_reason=reason.astype(jnp.int32),
    num_repaired=num_repaired,
  )


def _map_runs(fn, state, *rest):
  """Applies `fn(state of a run, *rest of it) -> state, outputs` in turn."""

  def apply(run_and_rest):
    run, *rest = run_and_rest
    new, outputs = fn(run._replace(frame=state.frame), *rest)
    return new._replace(frame=None), outputs

  runs, outputs = lax.map(apply, (state._replace(frame=None), *rest))
  return runs._replace(frame=state.frame), outputs


def _iterate(advance, state, limit, num_rows):
  """Steps the runs one after another, each up to its limit `[R]`.

  Args:
    advance: state -> state, one step of a single run.
    state: R runs.
    limit: `[R]` steps.
    num_rows: S, of the history.

  Returns:
    The new state, and the likelihoods after each step `[S, R]`.
  """
  rows = lax.iota(jnp.int32, num_rows)

  def iterate_one(state, limit):
    begun = state.num_steps

    def active(carry):
      state, _ = carry
      running = state.stop_reason == StopReason.RUNNING
      return running & (state.num_steps < limit)

    def body(carry):
      old, scores = carry
      new = advance(old)
      since = rows >= old.num_steps - begun
      return new, jnp.where(since, new.log_likelihood, scores)

    scores = jnp.broadcast_to(state.log_likelihood, (num_rows,))
    return lax.while_loop(active, body, (state, scores))

  state, history = _map_runs(iterate_one, state, limit)
  return state, history.T


def _e_step_by_differences(
  params, precision, x, sample_weight, frame, block_size
):
  """The E-step from the difference of every point from every mean."""
  family = FAMILIES[family_of(params)]

  def part(x, weight):
    x = _weighed_rows(frame.enter(x), weight)
    joint = _log_joint(params, precision, x)
    responsibilities, log_prob = _normalize(joint)
    moments = _moments(family, responsibilities, weight, params.means, x)
    return moments, numerics.dot(weight, log_prob)

  block_size = _block_rows(x, params.means.shape[0], block_size)
  moments, total = numerics.sum_blocks(part, x, sample_weight, block_size)
  return moments, total / sample_weight.sum()


def _e_step_by_products(
  params,
  precision,
  center,
  lengths,
  square,
  x,
  sample_weight,
  frame,
  block_size,
):
  """The E-step from products with statistics of the points about a center.

  Args:
    params: as for `e_step`.
    precision: the family's.
    center: `[D]` in the frame.
    lengths: `[K]` whitened squared distances of the means from the center.
    square: `[D, D]`, or None where the family needs none.
    x: and those that follow, as for `e_step`.
  """
  family = FAMILIES[family_of(params)]
  products = family.products
  means = params.means - center[None]
  num_components, num_features = means.shape
  natural = products.natural(precision, means)
  constant = _log_norm(params, num_features) - 0.5 * lengths

  def part(x, weight):
    x = _weighed_rows(frame.enter(x) - center[None], weight)
    statistics = products.statistics(x)
    joint = constant[:, None] + numerics.dot(natural, statistics.T)
    responsibilities, log_prob = _normalize(joint)
    weighted = responsibilities * weight[None]
    return (
      weighted.sum(axis=1),
      numerics.dot(weighted, statistics),
      numerics.dot(weight, log_prob),
    )

  width = 2 * natural.shape[1] + 3 * num_components
  block_size = numerics.block_rows(x.shape[0], width, block_size)
  counts, sums, total = numerics.sum_blocks(part, x, sample_weight, block_size)
  first, rest = sums[:, :num_features], sums[:, num_features:]
  if square is not None:  # of which the statistics know nothing
    inverse = numerics.dot(precision[0].T, precision[0])
    total = total - 0.5 * (inverse * square).sum()
    rest = square[None]
  moments = _recenter(family, Moments(counts, first, rest), means)
  return moments, total / sample_weight.sum()


def _weighed_rows(x, weight):
  """Rows `[B, D]`, with 0 in place of those of weight 0, whatever they hold."""
  return jnp.where(weight[:, None] > 0, x, 0)


def _recenter(family, moments, shift):
  """The moments about points `[K, D]` that are further on by a shift."""
  counts, first, second = moments
  moved = first - 0.5 * counts[:, None] * shift
  return Moments(
    counts,
    first - counts[:, None] * shift,
    family.recenter(second, moved, shift),
  )


def _moments(family, responsibilities, weight, means, x):
  """Moments of a block, from responsibilities `[K, B]` and weights `[B]`."""
  weighted = responsibilities * weight[None]
  counts = weighted.sum(axis=1)
  first = numerics.dot(weighted, x)
  return Moments(
    counts,
    first - counts[:, None] * means,
    family.scatter(responsibilities, weight, means, x),
  )


def _normalize(joint):
  """Responsibilities `[K, B]` and log-densities `[B]` of a joint `[K, B]`."""
  largest = joint.max(axis=0)
  below = joint - largest[None]
  density = jnp.where(below > -80, jnp.exp(below), 0)
  total = density.sum(axis=0)
  return density / total[None], largest + jnp.log(total)


def _log_joint(params, precision, x):
  """`log w_k + log N(x_n; k)` as `[K, B]`."""
  family = FAMILIES[family_of(params)]
  white = family.whiten(precision, params.means, x)
  log_norm = _log_norm(params, x.shape[1])
  return log_norm[:, None] - 0.5 * jnp.square(white).sum(axis=-1)


def _log_norm(params, num_features):
  """`log w_k` plus the logarithm of the density at the mean, `[K]`."""
  family = FAMILIES[family_of(params)]
  return (
    params.log_weights
    - family.log_det(params.scale_tril, num_features)
    - 0.5 * num_features * math.log(2 * math.pi)
  )


def _log_joint_of(params, x, block_size):
  x, _ = numerics.check_points(x)
  numerics.check_features(x, params.means.shape[-1])
  return _log_joint_blocks(params, x, block_size=block_size)


@functools.partial(jax.jit, static_argnames='block_size')
def _log_joint_blocks(params, x, *, block_size):
  """`log w_k + log N(x_n; k)` as `[N, K]`, in the units of the data."""
  precision = FAMILIES[family_of(params)].precision(params.scale_tril)
  offset = params.means.mean(axis=0)
  frame = Frame(offset, jnp.ones((), offset.dtype))
  centered = params._replace(means=frame.enter(params.means))
  return numerics.map_blocks(
    lambda x: _log_joint(centered, precision, frame.enter(x)).T,
    x,
    _block_rows(x, params.means.shape[0], block_size),
  )


def _total_log_prob(params, x, sample_weight):
  """Sum of the weighted log-densities, and sum of the weights."""
  x, sample_weight = numerics.check_points(x, sample_weight)
  total = numerics.dot(sample_weight, log_prob(params, x))
  return total, sample_weight.sum()


def _factor_with_repair(family, covariance, reg):
  """Factors covariances, with larger ridges where reg does not do.

  Returns:
    The factors, and which of them needed a larger ridge.
  """
  first = jnp.full(covariance.shape[0], reg, covariance.dtype)
  floor = jnp.finfo(covariance.dtype).eps
  finite = jnp.isfinite(covariance).all(axis=tuple(range(1, covariance.ndim)))

  def unsound(carry):
    _, _, sound = carry
    return jnp.any(finite & ~sound)

  def grow(carry):
    ridge, _, sound = carry
    ridge = jnp.where(sound, ridge, jnp.maximum(2 * ridge, floor))
    return ridge, *family.factor(covariance, ridge)

  carry = first, *family.factor(covariance, first)
  ridge, scale_tril, _ = lax.while_loop(unsound, grow, carry)
  return scale_tril, ridge > first


def _means_and_covariance(family, moments):
  """The means `[K, D]`, from where the moments are about, and covariances."""
  shift = _per_count(moments.first, moments.counts)
  counts, _, second = _recenter(family, moments, shift)
  if second.shape[0] < counts.shape[0]:  # one for all
    counts = counts.sum()[None]
  return shift, _per_count(second, counts)


def _per_count(total, counts):
  """Divides sums `[K, ...]` by counts `[K]`; 0 where nothing was counted."""
  return total / _along(jnp.where(counts > 0, counts, 1), total)


def _along(values, like):
  """Values `[K]` as an array that broadcasts along the first axis of like."""
  return values.reshape(-1, *[1] * (like.ndim - 1))


def _block_rows(x, num_components, block_size):
  """Rows of a block of a pass, unless the caller says."""
  width = (num_components + 1) * x.shape[1]
  return numerics.block_rows(x.shape[0], width, block_size)


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
  if any(isinstance(a, jax.core.Tracer) for a in params):
    return
  scales = np.asarray(params.scale_tril)
  if scales.ndim == 3:
    scales = np.diagonal(scales, axis1=1, axis2=2)
  if not all(np.isfinite(a).all() for a in params) or scales.min() <= 0:
    raise InputError(
      'init has values that are not finite, or scales that are not positive: '
      'give the parameters of another fit'
    )


def _differences(means, x):
  return x[None] - means[:, None]


def _inverse_tril(scale_tril):
  return _plain_or_lapack(_substitute, _solve_triangular, scale_tril)


def _plain_or_lapack(plain, lapack, matrix):
  """Factors small matrices `[K, D, D]` on a CPU without LAPACK, whose threads
  would go on spinning and take the cores from what follows."""
  if matrix.shape[-1] > _SMALL_MATRIX:
    return lapack(matrix)
  return lax.platform_dependent(matrix, cpu=plain, default=lapack)


def _solve_triangular(scale_tril):
  eye = jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype)
  return lax.linalg.triangular_solve(
    scale_tril,
    jnp.broadcast_to(eye, scale_tril.shape),
    left_side=True,
    lower=True,
  )


def _substitute(scale_tril):
  """The inverse of a lower triangle, row by row."""
  eye = jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype)

  def solve_row(i, inverse):
    row = scale_tril[:, i]
    known = jnp.einsum('kd,kde->ke', row, inverse, precision=PRECISION)
    return inverse.at[:, i].set((eye[i][None] - known) / row[:, i][:, None])

  zeros = jnp.zeros_like(scale_tril)
  return lax.fori_loop(0, eye.shape[0], solve_row, zeros)


def _cholesky(covariance):
  """The Cholesky factor column by column; NaN from a negative pivot on."""
  number = lax.iota(jnp.int32, covariance.shape[-1])

  def solve_column(j, factor):
    known = jnp.einsum('kde,ke->kd', factor, factor[:, j], precision=PRECISION)
    column = covariance[:, :, j] - known
    column = column / jnp.sqrt(column[:, j])[:, None]
    column = jnp.where((number >= j)[None], column, 0)
    return factor.at[:, :, j].set(column)

  zeros = jnp.zeros_like(covariance)
  return lax.fori_loop(0, covariance.shape[-1], solve_column, zeros)


def _log_det_tril(scale_tril, num_features):
  del num_features
  return jnp.log(jnp.diagonal(scale_tril, axis1=1, axis2=2)).sum(axis=1)


def _color_tril(scale, noise):
  return numerics.dot(noise, scale.T)


def _factor_tril(covariance, ridge):
  """Cholesky factors `[K, D, D]`, and which have pivots above rounding."""
  num_features = covariance.shape[-1]
  eye = jnp.eye(num_features, dtype=covariance.dtype)
  covariance = covariance + ridge[:, None, None] * eye[None]
  scale_tril = _plain_or_lapack(_cholesky, lax.linalg.cholesky, covariance)
  pivots = jnp.square(jnp.diagonal(scale_tril, axis1=1, axis2=2)).min(axis=1)
  largest = jnp.diagonal(covariance, axis1=1, axis2=2).max(axis=1)
  sound = pivots > jnp.finfo(covariance.dtype).eps * largest
  return jnp.tril(scale_tril), sound


def _full_whiten(precision, means, x):
  return jnp.einsum(
    'kbd,ked->kbe', _differences(means, x), precision, precision=PRECISION
  )


def _full_scatter(responsibilities, weight, means, x):
  difference = _differences(means, x)
  weighted = (responsibilities * weight[None])[..., None] * difference
  return jnp.einsum('kbd,kbe->kde', weighted, difference, precision=PRECISION)


def _full_recenter(second, moved, shift):
  explained = moved[:, :, None] * shift[:, None, :]
  return second - explained - explained.swapaxes(1, 2)


def _tied_whiten(precision, means, x):
  x = numerics.dot(x, precision[0].T)
  means = numerics.dot(means, precision[0].T)
  return _differences(means, x)


def _tied_scatter(responsibilities, weight, means, x):
  """Scatter about the mean expected at each point, and of means about it.

  `sum_k r_k (mu_k - m)(mu_k - m)^T` is a sum over pairs of components of
  `r_k r_l (mu_k - mu_l)(mu_k - mu_l)^T`: no product of size N D^2 but one.
  """
  weighted = responsibilities * weight[None]
  residual = x - numerics.dot(responsibilities.T, means)
  within = numerics.dot((residual * weight[:, None]).T, residual)
  shared = numerics.dot(weighted, responsibilities.T)
  shared = shared * (1 - jnp.eye(means.shape[0], dtype=means.dtype))
  laplacian = jnp.diag(shared.sum(axis=1)) - shared
  between = numerics.dot(means.T, numerics.dot(laplacian, means))
  return (within + between)[None]


def _tied_recenter(second, moved, shift):
  explained = numerics.dot(moved.T, shift)
  return second - (explained + explained.T)[None]


def _tied_natural(precision, means):
  return numerics.dot(numerics.dot(means, precision[0].T), precision[0])


def _diag_center(precision, means):
  """The mean of the means, weighted with their precisions."""
  weight = jnp.square(precision)
  return (weight * means).sum(axis=0) / weight.sum(axis=0)


def _diag_natural(precision, means):
  weight = jnp.square(precision)
  return jnp.concatenate([weight * means, -0.5 * weight], axis=1)


def _spherical_natural(precision, means):
  weight = jnp.square(precision)
  num_features = means.shape[1]
  return jnp.concatenate([weight * means, -0.5 * num_features * weight], axis=1)


def _spherical_statistics(x):
  squares = jnp.square(x).mean(axis=1, keepdims=True)
  return jnp.concatenate([x, squares], axis=1)


def _diag_whiten(precision, means, x):
  return _differences(means, x) * precision[:, None]


def _diag_scatter(responsibilities, weight, means, x):
  weighted = responsibilities * weight[None]
  squares = jnp.square(_differences(means, x))
  return jnp.einsum('kb,kbd->kd', weighted, squares, precision=PRECISION)


def _diag_recenter(second, moved, shift):
  return second - 2 * moved * shift


def _spherical_scatter(responsibilities, weight, means, x):
  squares = _diag_scatter(responsibilities, weight, means, x)
  return squares.mean(axis=1, keepdims=True)


def _spherical_recenter(second, moved, shift):
  return second - 2 * (moved * shift).mean(axis=1, keepdims=True)


def _diag_log_det(scale_tril, num_features):
  return jnp.log(scale_tril).mean(axis=1) * num_features


def _diag_factor(covariance, ridge):
  """Standard deviations, and which are above rounding."""
  variance = covariance + ridge[:, None]
  eps = jnp.finfo(covariance.dtype).eps
  sound = (variance > eps * variance.max(axis=1, keepdims=True)).all(axis=1)
  return jnp.sqrt(jnp.maximum(variance, 0)), sound


FAMILIES = {
  'full': Family(
    shape=lambda k, d: (k, d, d),
    num_parameters=lambda k, d: k * d * (d + 1) // 2,
    precision=_inverse_tril,
    log_det=_log_det_tril,
    whiten=_full_whiten,
    color=_color_tril,
    scatter=_full_scatter,
    recenter=_full_recenter,
    factor=_factor_tril,
  ),
  'tied': Family(
    shape=lambda k, d: (1, d, d),
    num_parameters=lambda k, d: d * (d + 1) // 2,
    precision=_inverse_tril,
    log_det=_log_det_tril,
    whiten=_tied_whiten,
    color=_color_tril,
    scatter=_tied_scatter,
    recenter=_tied_recenter,
    factor=_factor_tril,
    products=Products(
      center=lambda precision, means: jnp.zeros_like(means[0]),
      natural=_tied_natural,
      statistics=lambda x: x,
    ),
  ),
  'diag': Family(
    shape=lambda k, d: (k, d),
    num_parameters=lambda k, d: k * d,
    precision=jnp.reciprocal,
    log_det=_diag_log_det,
    whiten=_diag_whiten,
    color=lambda scale, noise: noise * scale[None],
    scatter=_diag_scatter,
    recenter=_diag_recenter,
    factor=_diag_factor,
    products=Products(
      center=_diag_center,
      natural=_diag_natural,
      statistics=lambda x: jnp.concatenate([x, jnp.square(x)], axis=1),
    ),
  ),
  'spherical': Family(
    shape=lambda k, d: (k, 1),
    num_parameters=lambda k, d: k,
    precision=jnp.reciprocal,
    log_det=_diag_log_det,
    whiten=_diag_whiten,
    color=lambda scale, noise: noise * scale[None],
    scatter=_spherical_scatter,
    recenter=_spherical_recenter,
    factor=_diag_factor,
    products=Products(
      center=_diag_center,
      natural=_spherical_natural,
      statistics=_spherical_statistics,
    ),
  ),
}

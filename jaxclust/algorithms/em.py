"""Expectation-maximisation as statistics and an update; see `gmm` for its use.

The E-step sums the moments of the responsibilities about the current means. The
M-step takes the parameters from them. The functions here are of a single run:
runs of EM take turns on every device. The shapes of parameters and of moments
tell the family of covariances.

Axes: N points, D features, K components, B rows of a block.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks
from jaxclust.algorithms import covariances
from jaxclust.algorithms.covariances import FAMILIES, Family
from jaxclust.algorithms.solver import Algorithm, along
from jaxclust.frames import Frame, dot


class GMMParams(NamedTuple):
  """A mixture of Gaussians; a component of log-weight -inf is padding."""

  log_weights: jax.Array  # [K]
  means: jax.Array  # [K, D]
  scale_tril: jax.Array  # [K, D, D], [1, D, D], [K, D] or [K, 1]


class Mixture(NamedTuple):
  """The parameters of R runs, in a frame."""

  params: GMMParams  # [R, ...]
  num_repaired: jax.Array  # [R] int32, larger ridges than reg in the last step

  @property
  def num_features(self) -> int:
    return self.params.means.shape[-1]


class Moments(NamedTuple):
  """Sums over points of responsibilities and of moments about the means."""

  counts: jax.Array  # [K]
  first: jax.Array  # [K, D]
  second: jax.Array  # as scale_tril
  log_prob: jax.Array  # [] sum of log-densities
  weight: jax.Array  # [] of the points


class Prepared(NamedTuple):
  """What a pass computes of a mixture once."""

  params: GMMParams
  precision_cholesky: jax.Array  # the inverse of scale_tril
  log_norm: jax.Array  # [K] log w_k plus the log-density at the mean


def family_of(params: GMMParams) -> str:
  """The name of the family of `[..., K, D]` means, from the factors' shape."""
  num_runs = params.means.ndim - 2  # axes in front of a mixture's own
  shape = params.scale_tril.shape[num_runs:]
  if len(shape) == 3:
    return 'full' if shape[0] == params.means.shape[-2] else 'tied'
  return 'spherical' if shape[1] == 1 else 'diag'


def _functions(means: jax.Array, like: jax.Array) -> Family:
  """Those of the family of means `[K, D]`, and of arrays like scale_tril."""
  return FAMILIES[family_of(GMMParams((), means, like))]


def pad(params: GMMParams, size: int, dtype: Any) -> GMMParams:
  """A mixture with components of log-weight -inf, up to `size` of them."""
  lib = jnp if checks.is_traced(params) else np
  log_weights, means, scale = (lib.asarray(a).astype(dtype) for a in params)
  extra = size - len(log_weights)
  if extra and len(scale) == len(means):
    like = covariances.identity((extra, *scale.shape[1:]), dtype, lib)
    scale = lib.concatenate([scale, like])
  return GMMParams(
    lib.pad(log_weights, (0, extra), constant_values=-np.inf),
    lib.pad(means, ((0, extra), (0, 0))),
    scale,
  )


def in_frame(params: GMMParams, frame: Frame) -> GMMParams:
  """A mixture `[K, ...]` of the data's units in the coordinates of a frame."""
  scale_tril = params.scale_tril / frame.scale
  return GMMParams(params.log_weights, frame.apply(params.means), scale_tril)


def first_run(runs: Any) -> Any:
  """The one run of a pytree `[1, ...]`, without the axis."""
  return jax.tree.map(lambda a: a[0], runs)


def as_runs(run: Any) -> Any:
  """A run as a pytree `[1, ...]`."""
  return jax.tree.map(lambda a: a[None], run)


def prepare(params: GMMParams) -> Prepared:
  """What a pass needs of a mixture."""
  num_features = params.means.shape[1]
  log_norm = (
    params.log_weights
    - covariances.half_log_det(params.scale_tril, num_features)
    - 0.5 * num_features * math.log(2 * math.pi)
  )
  return Prepared(params, covariances.invert(params.scale_tril), log_norm)


def log_joint(prepared: Prepared, x: jax.Array) -> jax.Array:
  """`log w_k + log N(x_n; k)` of rows `[B, D]` as `[K, B]`."""
  means, factor = prepared.params.means, prepared.precision_cholesky
  white = _functions(means, factor).whiten(factor, means, x)
  return prepared.log_norm[:, None] - 0.5 * jnp.square(white).sum(axis=-1)


def normalize(joint: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Responsibilities `[K, B]` and log-densities `[B]` of a joint `[K, B]`."""
  largest = joint.max(axis=0)
  below = joint - largest[None]
  density = jnp.where(below > -80, jnp.exp(below), 0)
  total = density.sum(axis=0)
  return density / total[None], largest + jnp.log(total)


def e_step(prepared: Prepared, x: jax.Array, weight: jax.Array) -> Moments:
  """The moments of a block."""
  shares, log_prob = normalize(log_joint(prepared, x))
  moments = moments_of(prepared.params, shares, weight, x)
  return moments._replace(log_prob=dot(weight, log_prob))


def moments_of(
  params: GMMParams,
  responsibilities: jax.Array,
  weight: jax.Array,
  x: jax.Array,
) -> Moments:
  """Moments of a block about means, from responsibilities `[K, B]`."""
  _, means, scale_tril = params
  weighted = responsibilities * weight[None]
  counts = weighted.sum(axis=1)
  scatter = _functions(means, scale_tril).scatter
  return Moments(
    counts,
    dot(weighted, x) - counts[:, None] * means,
    scatter(responsibilities, weight, means, x),
    jnp.zeros((), x.dtype),
    weight.sum(),
  )


def recenter(moments: Moments, shift: jax.Array) -> Moments:
  """The moments about points `[K, D]` that are further on by a shift."""
  counts, first, second, *_ = moments
  moved = first - 0.5 * counts[:, None] * shift
  return moments._replace(
    first=first - counts[:, None] * shift,
    second=_functions(first, second).recenter(second, moved, shift),
  )


def _per_count(total, counts):
  """Divides sums `[K, ...]` by counts `[K]`; 0 where nothing was counted."""
  return total / along(jnp.where(counts > 0, counts, 1), total)


def m_step(
  params: GMMParams, moments: Moments, reg: jax.Array
) -> tuple[GMMParams, jax.Array]:
  """Parameters that maximise the expected likelihood, given the moments.

  A component that has lost all its points keeps its place and its shape. A
  covariance that is singular in spite of the ridge gets the first of a growing
  series of ridges that makes it sound. How many did comes second, `[]` int32.
  """
  counts = moments.counts
  occupied = counts > 0
  shift = _per_count(moments.first, counts)
  second = recenter(moments, shift).second
  each = second.shape[0] == counts.shape[0]  # or one for all
  covariance = _per_count(second, counts if each else counts.sum()[None])
  scale_tril, repaired = covariances.factor_with_repair(covariance, reg)
  if each:
    repaired = repaired & occupied
    scale_tril = jnp.where(
      along(occupied, scale_tril), scale_tril, params.scale_tril
    )
  weights = jnp.maximum(counts / counts.sum(), jnp.finfo(counts.dtype).tiny)
  log_weights = jnp.where(
    jnp.isneginf(params.log_weights), -jnp.inf, jnp.log(weights)
  )
  params = GMMParams(log_weights, params.means + shift, scale_tril)
  return params, repaired.sum(dtype=jnp.int32)


def _update(mixture, moments, frame, reg):
  del frame
  params, moments = first_run((mixture.params, moments))
  return as_runs(Mixture(*m_step(params, moments, reg)))


def _rebase(moments, old, new):
  shift = first_run(new.params.means - old.params.means)
  return as_runs(recenter(first_run(moments), shift))


EM = Algorithm(
  stats=lambda prepared, x, weight: as_runs(
    e_step(first_run(prepared), x, weight)
  ),
  update=_update,
  objective=lambda moments: -moments.log_prob / moments.weight,
  change=lambda old, new: old.objective - new.objective,
  width=lambda mixture: mixture.params.means.size,
  prepare=lambda mixture: as_runs(prepare(first_run(mixture.params))),
  rebase=_rebase,
)

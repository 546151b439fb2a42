"""Expectation-maximisation as statistics and an update; see `gmm` for its use.

The E-step sums the moments of the responsibilities about the current means. The
M-step takes the parameters from them. The functions here are of a single run:
runs of EM take turns on every device.

Axes: N points, D features, K components, B rows of a block.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import checks
from jaxclust.algorithms.covariances import (
  FAMILIES,
  factor_with_repair,
  identity,
)
from jaxclust.algorithms.solver import Algorithm
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


def pad(params: GMMParams, size: int, dtype: Any) -> GMMParams:
  """A mixture with components of log-weight -inf, up to `size` of them."""
  lib = jnp if checks.is_traced(params) else np
  log_weights, means, scale = (lib.asarray(a).astype(dtype) for a in params)
  extra = size - len(log_weights)
  if extra and len(scale) == len(means):
    like = identity((extra, *scale.shape[1:]), dtype)
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


def prepare(family: str, params: GMMParams) -> Prepared:
  """What a pass needs of a mixture."""
  functions = FAMILIES[family]
  num_features = params.means.shape[1]
  log_norm = (
    params.log_weights
    - functions.half_log_det(params.scale_tril, num_features)
    - 0.5 * num_features * math.log(2 * math.pi)
  )
  return Prepared(params, functions.invert(params.scale_tril), log_norm)


def log_joint(family: str, prepared: Prepared, x: jax.Array) -> jax.Array:
  """`log w_k + log N(x_n; k)` of rows `[B, D]` as `[K, B]`."""
  white = FAMILIES[family].whiten(
    prepared.precision_cholesky, prepared.params.means, x
  )
  return prepared.log_norm[:, None] - 0.5 * jnp.square(white).sum(axis=-1)


def normalize(joint: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Responsibilities `[K, B]` and log-densities `[B]` of a joint `[K, B]`."""
  largest = joint.max(axis=0)
  below = joint - largest[None]
  density = jnp.where(below > -80, jnp.exp(below), 0)
  total = density.sum(axis=0)
  return density / total[None], largest + jnp.log(total)


def e_step(
  family: str, prepared: Prepared, x: jax.Array, weight: jax.Array
) -> Moments:
  """The moments of a block."""
  shares, log_prob = normalize(log_joint(family, prepared, x))
  moments = moments_of(family, shares, weight, prepared.params.means, x)
  return moments._replace(log_prob=dot(weight, log_prob))


def moments_of(
  family: str,
  responsibilities: jax.Array,
  weight: jax.Array,
  means: jax.Array,
  x: jax.Array,
) -> Moments:
  """Moments of a block about means, from responsibilities `[K, B]`."""
  weighted = responsibilities * weight[None]
  counts = weighted.sum(axis=1)
  return Moments(
    counts,
    dot(weighted, x) - counts[:, None] * means,
    FAMILIES[family].scatter(responsibilities, weight, means, x),
    jnp.zeros((), x.dtype),
    weight.sum(),
  )


def recenter(family: str, moments: Moments, shift: jax.Array) -> Moments:
  """The moments about points `[K, D]` that are further on by a shift."""
  counts, first, second, *_ = moments
  moved = first - 0.5 * counts[:, None] * shift
  return moments._replace(
    first=first - counts[:, None] * shift,
    second=FAMILIES[family].recenter(second, moved, shift),
  )


def means_and_covariance(
  family: str, moments: Moments
) -> tuple[jax.Array, jax.Array]:
  """Means `[K, D]`, from where the moments are about, and covariances."""
  shift = _per_count(moments.first, moments.counts)
  counts, _, second, *_ = recenter(family, moments, shift)
  if second.shape[0] < counts.shape[0]:  # one for all
    counts = counts.sum()[None]
  return shift, _per_count(second, counts)


def _per_count(total, counts):
  """Divides sums `[K, ...]` by counts `[K]`; 0 where nothing was counted."""
  return total / _along(jnp.where(counts > 0, counts, 1), total)


def _along(values, like):
  """Values `[K]` as an array that broadcasts along the first axis of like."""
  return values.reshape(-1, *[1] * (like.ndim - 1))


def m_step(
  family: str, params: GMMParams, moments: Moments, reg: jax.Array
) -> tuple[GMMParams, jax.Array]:
  """Parameters that maximise the expected likelihood, given the moments.

  A component that has lost all its points keeps its place and its shape. A
  covariance that is singular in spite of the ridge gets the first of a growing
  series of ridges that makes it sound.

  Returns:
    The parameters, and how many covariances were repaired, `[]` int32.
  """
  counts = moments.counts
  occupied = counts > 0
  shift, covariance = means_and_covariance(family, moments)
  scale_tril, repaired = factor_with_repair(FAMILIES[family], covariance, reg)
  if scale_tril.shape[0] == counts.shape[0]:
    repaired = repaired & occupied
    scale_tril = jnp.where(
      _along(occupied, scale_tril), scale_tril, params.scale_tril
    )
  weights = jnp.maximum(counts / counts.sum(), jnp.finfo(counts.dtype).tiny)
  log_weights = jnp.where(
    jnp.isneginf(params.log_weights), -jnp.inf, jnp.log(weights)
  )
  params = GMMParams(log_weights, params.means + shift, scale_tril)
  return params, repaired.sum(dtype=jnp.int32)


@functools.cache
def em(family: str) -> Algorithm:
  """The plain algorithm of a family."""

  def stats(prepared, x, weight):
    return as_runs(e_step(family, first_run(prepared), x, weight))

  def update(mixture, moments, options):
    run, moments = first_run((mixture.params, moments))
    return as_runs(Mixture(*m_step(family, run, moments, options.reg)))

  def rebase(moments, old, new):
    shift = first_run(new.params.means - old.params.means)
    return as_runs(recenter(family, first_run(moments), shift))

  return Algorithm(
    stats=stats,
    update=update,
    objective=lambda moments: -moments.log_prob / moments.weight,
    change=lambda old, new: old.objective - new.objective,
    width=lambda mixture: mixture.params.means.size,
    prepare=lambda mixture: as_runs(prepare(family, first_run(mixture.params))),
    rebase=rebase,
  )

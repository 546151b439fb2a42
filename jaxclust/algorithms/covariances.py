"""Four families of covariances, each as a Cholesky factor of its own shape.

  full       [K, D, D]   a matrix for each component
  tied       [1, D, D]   one matrix for all
  diag       [K, D]      a standard deviation for each component and feature
  spherical  [K, 1]      one for each component

Axes: K components, D features, B rows of a block.

Reference:
  Bishop (2006), Pattern recognition and machine learning, section 2.3
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms.triangles import cholesky, invert_tril
from jaxclust.frames import dot

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Family(NamedTuple):
  """What distinguishes one family of covariances from the others.

  `precision_cholesky` is the inverse of the factor: it whitens.
  """

  shape: Callable  # (K, D) -> shape of scale_tril
  num_parameters: Callable  # (K, D) -> free numbers in all covariances
  invert: Callable  # scale_tril -> precision_cholesky
  half_log_det: Callable  # scale_tril, D -> [K] or [1]
  whiten: Callable  # precision_cholesky, means, x [B, D] -> [K, B, D]
  color: Callable  # one component's scale, noise [B, D] -> [B, D]
  scatter: Callable  # responsibilities [K, B], weight [B], means, x -> second
  recenter: Callable  # second, moved [K, D], shift [K, D] -> second
  factor: Callable  # covariance, ridge -> scale_tril, which are sound


def differences(means: jax.Array, x: jax.Array) -> jax.Array:
  """Differences `[K, B, D]` of rows from means `[K, D]`."""
  return x[None] - means[:, None]


def identity(shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Factors of the identity, of the shape of a family."""
  if len(shape) == 2:
    return jnp.ones(shape, dtype)
  return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def factor_with_repair(
  family: Family, covariance: jax.Array, reg: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Factors covariances, with larger ridges where reg does not suffice.

  Returns:
    The factors, and which of them needed a larger ridge.
  """
  first = jnp.full(covariance.shape[0], reg, covariance.dtype)
  floor = jnp.finfo(covariance.dtype).eps
  finite = jnp.isfinite(covariance).all(axis=tuple(range(1, covariance.ndim)))

  def unsound(carry):
    tries, _, _, sound = carry
    return (tries == 0) | jnp.any(finite & ~sound)

  def factor(carry):
    tries, ridge, _, sound = carry
    keeps = sound | (tries == 0)
    ridge = jnp.where(keeps, ridge, jnp.maximum(2 * ridge, floor))
    return tries + 1, ridge, *family.factor(covariance, ridge)

  carry = 0, first, jnp.zeros_like(covariance), jnp.zeros(len(first), bool)
  _, ridge, scale_tril, _ = lax.while_loop(unsound, factor, carry)
  return scale_tril, ridge > first


def _half_log_det_tril(scale_tril, num_features):
  del num_features
  return jnp.log(jnp.diagonal(scale_tril, axis1=1, axis2=2)).sum(axis=1)


def _color_tril(scale, noise):
  return dot(noise, scale.T)


def _factor_tril(covariance, ridge):
  """Cholesky factors `[K, D, D]`, and which have pivots above rounding."""
  num_features = covariance.shape[-1]
  eye = jnp.eye(num_features, dtype=covariance.dtype)
  covariance = covariance + ridge[:, None, None] * eye[None]
  scale_tril = cholesky(covariance)
  pivots = jnp.square(jnp.diagonal(scale_tril, axis1=1, axis2=2)).min(axis=1)
  largest = jnp.diagonal(covariance, axis1=1, axis2=2).max(axis=1)
  sound = pivots > jnp.finfo(covariance.dtype).eps * largest
  return jnp.tril(scale_tril), sound


def _full_whiten(precision_cholesky, means, x):
  return _einsum('kbd,ked->kbe', differences(means, x), precision_cholesky)


def _full_scatter(responsibilities, weight, means, x):
  difference = differences(means, x)
  weighted = (responsibilities * weight[None])[..., None] * difference
  return _einsum('kbd,kbe->kde', weighted, difference)


def _full_recenter(second, moved, shift):
  explained = moved[:, :, None] * shift[:, None, :]
  return second - explained - explained.swapaxes(1, 2)


def _tied_whiten(precision_cholesky, means, x):
  x = dot(x, precision_cholesky[0].T)
  means = dot(means, precision_cholesky[0].T)
  return differences(means, x)


def _tied_scatter(responsibilities, weight, means, x):
  """Scatter about the mean expected at each point, and of means about it.

  `sum_k r_k (mu_k - m)(mu_k - m)^T` is a sum over pairs of components of
  `r_k r_l (mu_k - mu_l)(mu_k - mu_l)^T`: no product of size N D^2 but one.
  """
  weighted = responsibilities * weight[None]
  residual = x - dot(responsibilities.T, means)
  within = dot((residual * weight[:, None]).T, residual)
  shared = dot(weighted, responsibilities.T)
  shared = shared * (1 - jnp.eye(means.shape[0], dtype=means.dtype))
  laplacian = jnp.diag(shared.sum(axis=1)) - shared
  between = dot(means.T, dot(laplacian, means))
  return (within + between)[None]


def _tied_recenter(second, moved, shift):
  explained = dot(moved.T, shift)
  return second - (explained + explained.T)[None]


def _diag_whiten(precision_cholesky, means, x):
  return differences(means, x) * precision_cholesky[:, None]


def _diag_scatter(responsibilities, weight, means, x):
  weighted = responsibilities * weight[None]
  return _einsum('kb,kbd->kd', weighted, jnp.square(differences(means, x)))


def _diag_recenter(second, moved, shift):
  return second - 2 * moved * shift


def _spherical_scatter(responsibilities, weight, means, x):
  squares = _diag_scatter(responsibilities, weight, means, x)
  return squares.mean(axis=1, keepdims=True)


def _spherical_recenter(second, moved, shift):
  return second - 2 * (moved * shift).mean(axis=1, keepdims=True)


def _diag_half_log_det(scale_tril, num_features):
  return jnp.log(scale_tril).mean(axis=1) * num_features


def _diag_factor(covariance, ridge):
  """Standard deviations, and which are above rounding."""
  variance = covariance + ridge[:, None]
  eps = jnp.finfo(covariance.dtype).eps
  sound = (variance > eps * variance.max(axis=1, keepdims=True)).all(axis=1)
  return jnp.sqrt(jnp.maximum(variance, 0)), sound


_FULL = Family(
  shape=lambda k, d: (k, d, d),
  num_parameters=lambda k, d: k * d * (d + 1) // 2,
  invert=invert_tril,
  half_log_det=_half_log_det_tril,
  whiten=_full_whiten,
  color=_color_tril,
  scatter=_full_scatter,
  recenter=_full_recenter,
  factor=_factor_tril,
)

_DIAG = Family(
  shape=lambda k, d: (k, d),
  num_parameters=lambda k, d: k * d,
  invert=jnp.reciprocal,
  half_log_det=_diag_half_log_det,
  whiten=_diag_whiten,
  color=lambda scale, noise: noise * scale[None],
  scatter=_diag_scatter,
  recenter=_diag_recenter,
  factor=_diag_factor,
)

FAMILIES = {
  'full': _FULL,
  'tied': _FULL._replace(
    shape=lambda k, d: (1, d, d),
    num_parameters=lambda k, d: d * (d + 1) // 2,
    whiten=_tied_whiten,
    scatter=_tied_scatter,
    recenter=_tied_recenter,
  ),
  'diag': _DIAG,
  'spherical': _DIAG._replace(
    shape=lambda k, d: (k, 1),
    num_parameters=lambda k, d: k,
    scatter=_spherical_scatter,
    recenter=_spherical_recenter,
  ),
}

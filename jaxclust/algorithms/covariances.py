"""Four families of covariances, each as a Cholesky factor of its own shape.

  full       [K, D, D]   a matrix for each component
  tied       [1, D, D]   one matrix for all
  diag       [K, D]      a standard deviation for each component and feature
  spherical  [K, 1]      one for each component

The inverse of a factor whitens: it is called `precision_cholesky`. On a CPU the
threads of LAPACK go on spinning after a call, and take the cores from what
follows: a step of EM with small matrices is faster without it.

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

from jaxclust.frames import dot

# Maximum size of a matrix that a CPU factors by a loop over columns.
_SMALL_MATRIX = 128

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Family(NamedTuple):
  """What distinguishes one family of covariances from the others."""

  shape: Callable  # (K, D) -> shape of scale_tril
  whiten: Callable  # precision_cholesky, means, x [B, D] -> [K, B, D]
  scatter: Callable  # responsibilities [K, B], weight [B], means, x -> second
  recenter: Callable  # second, moved [K, D], shift [K, D] -> second


def identity(shape: tuple[int, ...], dtype: Any, lib: Any = jnp) -> jax.Array:
  """Factors of the identity, of the shape of a family, in JAX or NumPy."""
  if len(shape) == 2:
    return lib.ones(shape, dtype)
  return lib.broadcast_to(lib.eye(shape[-1], dtype=dtype), shape)


def invert(scale_tril: jax.Array) -> jax.Array:
  """The factors' inverses, of the same shape."""
  if scale_tril.ndim == 2:
    return 1 / scale_tril
  return _plain_or_lapack(_substitute, _solve_triangular, scale_tril)


def half_log_det(scale_tril: jax.Array, num_features: int) -> jax.Array:
  """Half the logarithms `[K]` or `[1]` of the covariances' determinants."""
  if scale_tril.ndim == 2:
    return jnp.log(scale_tril).mean(axis=1) * num_features
  return jnp.log(jnp.diagonal(scale_tril, axis1=1, axis2=2)).sum(axis=1)


def color(scale: jax.Array, noise: jax.Array) -> jax.Array:
  """Noise `[B, D]` with the covariance of one factor, `[D, D]` or a row."""
  return noise * scale[None] if scale.ndim == 1 else dot(noise, scale.T)


def factor_with_repair(
  covariance: jax.Array, reg: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Factors of covariances, and which `[K]` needed a larger ridge than reg."""
  first = jnp.full(covariance.shape[0], reg, covariance.dtype)
  floor = jnp.finfo(covariance.dtype).eps
  finite = jnp.isfinite(covariance).all(axis=tuple(range(1, covariance.ndim)))

  def unsound(carry):
    tries, _, _, sound = carry
    return (tries == 0) | jnp.any(finite & ~sound)

  def try_again(carry):
    tries, ridge, _, sound = carry
    keeps = sound | (tries == 0)
    ridge = jnp.where(keeps, ridge, jnp.maximum(2 * ridge, floor))
    return tries + 1, ridge, *factor(covariance, ridge)

  carry = 0, first, jnp.zeros_like(covariance), jnp.zeros(len(first), bool)
  _, ridge, scale_tril, _ = lax.while_loop(unsound, try_again, carry)
  return scale_tril, ridge > first


def factor(
  covariance: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Factors of covariances with ridges `[K]`, and which are above rounding."""
  eps = jnp.finfo(covariance.dtype).eps
  if covariance.ndim == 2:
    variance = covariance + ridge[:, None]
    sound = (variance > eps * variance.max(axis=1, keepdims=True)).all(axis=1)
    return jnp.sqrt(jnp.maximum(variance, 0)), sound
  eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
  covariance = covariance + ridge[:, None, None] * eye[None]
  scale_tril = cholesky(covariance)
  pivots = jnp.square(jnp.diagonal(scale_tril, axis1=1, axis2=2)).min(axis=1)
  largest = jnp.diagonal(covariance, axis1=1, axis2=2).max(axis=1)
  return jnp.tril(scale_tril), pivots > eps * largest


def cholesky(covariance: jax.Array) -> jax.Array:
  """Cholesky factors of `[K, D, D]`; NaN from a negative pivot on."""
  return _plain_or_lapack(_factor_columns, lax.linalg.cholesky, covariance)


def _plain_or_lapack(plain, lapack, matrix):
  if matrix.shape[-1] > _SMALL_MATRIX:
    return lapack(matrix)
  return lax.platform_dependent(matrix, cpu=plain, default=lapack)


def _factor_columns(covariance):
  number = lax.iota(jnp.int32, covariance.shape[-1])

  def solve_column(j, factor):
    known = _einsum('kde,ke->kd', factor, factor[:, j])
    column = covariance[:, :, j] - known
    column = column / jnp.sqrt(column[:, j])[:, None]
    column = jnp.where((number >= j)[None], column, 0)
    return factor.at[:, :, j].set(column)

  zeros = jnp.zeros_like(covariance)
  return lax.fori_loop(0, covariance.shape[-1], solve_column, zeros)


def _substitute(scale_tril):
  """The inverses of lower triangles, row by row."""
  eye = jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype)

  def solve_row(i, inverse):
    row = scale_tril[:, i]
    known = _einsum('kd,kde->ke', row, inverse)
    return inverse.at[:, i].set((eye[i][None] - known) / row[:, i][:, None])

  zeros = jnp.zeros_like(scale_tril)
  return lax.fori_loop(0, eye.shape[0], solve_row, zeros)


def _solve_triangular(scale_tril):
  eye = identity(scale_tril.shape, scale_tril.dtype)
  return lax.linalg.triangular_solve(
    scale_tril, eye, left_side=True, lower=True
  )


def _differences(means, x):
  """Differences `[K, B, D]` of rows from means `[K, D]`."""
  return x[None] - means[:, None]


def _full_whiten(precision_cholesky, means, x):
  return _einsum('kbd,ked->kbe', _differences(means, x), precision_cholesky)


def _full_scatter(responsibilities, weight, means, x):
  difference = _differences(means, x)
  weighted = (responsibilities * weight[None])[..., None] * difference
  return _einsum('kbd,kbe->kde', weighted, difference)


def _full_recenter(second, moved, shift):
  explained = moved[:, :, None] * shift[:, None, :]
  return second - explained - explained.swapaxes(1, 2)


def _tied_whiten(precision_cholesky, means, x):
  x = dot(x, precision_cholesky[0].T)
  means = dot(means, precision_cholesky[0].T)
  return _differences(means, x)


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
  return _differences(means, x) * precision_cholesky[:, None]


def _diag_scatter(responsibilities, weight, means, x):
  weighted = responsibilities * weight[None]
  return _einsum('kb,kbd->kd', weighted, jnp.square(_differences(means, x)))


def _diag_recenter(second, moved, shift):
  return second - 2 * moved * shift


def _spherical_scatter(responsibilities, weight, means, x):
  squares = _diag_scatter(responsibilities, weight, means, x)
  return squares.mean(axis=1, keepdims=True)


def _spherical_recenter(second, moved, shift):
  return second - 2 * (moved * shift).mean(axis=1, keepdims=True)


FAMILIES = {
  'full': Family(
    lambda k, d: (k, d, d), _full_whiten, _full_scatter, _full_recenter
  ),
  'tied': Family(
    lambda k, d: (1, d, d), _tied_whiten, _tied_scatter, _tied_recenter
  ),
  'diag': Family(
    lambda k, d: (k, d), _diag_whiten, _diag_scatter, _diag_recenter
  ),
  'spherical': Family(
    lambda k, d: (k, 1), _diag_whiten, _spherical_scatter, _spherical_recenter
  ),
}

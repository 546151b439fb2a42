"""Cholesky factors and inverses of triangles, by LAPACK or without it.

On a CPU the threads of LAPACK go on spinning after a call, and take the cores
from what follows. A step of EM with small matrices is faster without it.

Axes: K matrices, D features.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Maximum size of a matrix that a CPU factors by a loop over columns.
_SMALL_MATRIX = 128

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def cholesky(covariance: jax.Array) -> jax.Array:
  """Cholesky factors of `[K, D, D]`; NaN from a negative pivot on."""
  return _plain_or_lapack(_factor_columns, lax.linalg.cholesky, covariance)


def invert_tril(scale_tril: jax.Array) -> jax.Array:
  """Inverses of lower triangles `[K, D, D]`."""
  return _plain_or_lapack(_substitute, _solve_triangular, scale_tril)


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
  """The inverse of a lower triangle, row by row."""
  eye = jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype)

  def solve_row(i, inverse):
    row = scale_tril[:, i]
    known = _einsum('kd,kde->ke', row, inverse)
    return inverse.at[:, i].set((eye[i][None] - known) / row[:, i][:, None])

  zeros = jnp.zeros_like(scale_tril)
  return lax.fori_loop(0, eye.shape[0], solve_row, zeros)


def _solve_triangular(scale_tril):
  eye = jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype)
  return lax.linalg.triangular_solve(
    scale_tril,
    jnp.broadcast_to(eye, scale_tril.shape),
    left_side=True,
    lower=True,
  )

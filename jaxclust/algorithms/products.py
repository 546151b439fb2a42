"""The E-step as matrix products, for families whose density allows it.

The log-joint of tied, diagonal and spherical mixtures is linear in statistics
of the points, as densities of an exponential family are. The first D statistics
are the points themselves. Where products would lose digits the plain E-step is
made instead.

Axes: N points, D features, K components, F statistics, B rows of a block.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms import em, solver
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.frames import dot
from jaxclust.rows import reduce_rows

# Change of a log-density by rounding up to which products are used.
_TRUSTED = 1e-4


class Products(NamedTuple):
  """The functions that turn the E-step of a family into products."""

  center: Callable  # precision_cholesky, means -> [D] where they cancel least
  natural: Callable  # precision_cholesky, means -> coefficients [K, F]
  statistics: Callable  # x [B, D] -> [B, F]
  square: bool = False  # whether the sum of x x^T enters, which is a constant


def _tied_natural(precision_cholesky, means):
  return dot(dot(means, precision_cholesky[0].T), precision_cholesky[0])


def _diag_center(precision_cholesky, means):
  """The mean of the means, weighted with their precisions."""
  weight = jnp.square(precision_cholesky)
  return (weight * means).sum(axis=0) / weight.sum(axis=0)


def _diag_natural(precision_cholesky, means):
  weight = jnp.square(precision_cholesky)
  return jnp.concatenate([weight * means, -0.5 * weight], axis=1)


def _spherical_natural(precision_cholesky, means):
  weight = jnp.square(precision_cholesky)
  half = -0.5 * means.shape[1] * weight
  return jnp.concatenate([weight * means, half], axis=1)


def _spherical_statistics(x):
  squares = jnp.square(x).mean(axis=1, keepdims=True)
  return jnp.concatenate([x, squares], axis=1)


PRODUCTS = {
  'tied': Products(
    center=lambda precision_cholesky, means: jnp.zeros_like(means[0]),
    natural=_tied_natural,
    statistics=lambda x: x,
    square=True,
  ),
  'diag': Products(
    center=_diag_center,
    natural=_diag_natural,
    statistics=lambda x: jnp.concatenate([x, jnp.square(x)], axis=1),
  ),
  'spherical': Products(
    center=_diag_center,
    natural=_spherical_natural,
    statistics=_spherical_statistics,
  ),
}


@functools.cache
def em_by_products(family: str) -> solver.Algorithm:
  """The algorithm of a family that `PRODUCTS` names, with less work."""
  plain = em.em(family)

  def sweep(mixture, square, rows):
    moments = lax.cond(
      _is_trusted(family, mixture, square, rows),
      lambda: _sum_products(family, mixture, square, rows),
      lambda: solver.sum_stats(plain, mixture, rows),
    )
    return moments, square

  def begin(mixture, rows):
    del mixture
    if not PRODUCTS[family].square:
      return jnp.zeros((0, 0), rows.dtype)
    return reduce_rows(_square, (), rows, width=rows.shape[1])

  return plain._replace(begin=begin, sweep=sweep)


def _square(params, x, weight):
  """The weighted sum `[D, D]` of `x x^T`: no step changes it."""
  del params
  return dot((x * weight[:, None]).T, x)


def _is_trusted(family, mixture, square, rows):
  """Whether the terms of the log-joint are small enough for products."""
  prepared = em.prepare(family, em.first_run(mixture.params))
  _, lengths = _center(family, prepared)
  terms = lengths.max()
  if square.size:
    spread = jnp.sqrt(jnp.diagonal(square) / rows.weight.sum())
    inverse = _precision(prepared) * spread[None] * spread[:, None]
    terms = jnp.maximum(terms, jnp.sqrt(jnp.square(inverse).sum()))
  return jnp.finfo(terms.dtype).eps * terms < _TRUSTED


def _center(family, prepared):
  """The point `[D]` that statistics are about, and whitened squared distances
  `[K]` of the means from it."""
  factor, means = prepared.precision_cholesky, prepared.params.means
  center = PRODUCTS[family].center(factor, means)
  white = FAMILIES[family].whiten(factor, means, center[None])
  return center, jnp.square(white).sum(axis=(1, 2))


def _precision(prepared):
  factor = prepared.precision_cholesky[0]
  return dot(factor.T, factor)


def _sum_products(family, mixture, square, rows):
  """The moments of a mixture, in runs `[1, ...]`."""
  prepared = em.prepare(family, em.first_run(mixture.params))
  center, lengths = _center(family, prepared)
  means = prepared.params.means - center[None]
  natural = PRODUCTS[family].natural(prepared.precision_cholesky, means)
  constant = prepared.log_norm - 0.5 * lengths
  counts, sums, total, weight = reduce_rows(
    _block_of(family),
    (natural, constant, center),
    rows,
    width=2 * natural.shape[1] + 3 * len(means) - rows.shape[1],
  )
  first, second = sums[:, : len(center)], sums[:, len(center) :]
  if square.size:  # the statistics leave out the quadratic term
    total = total - 0.5 * (_precision(prepared) * square).sum()
    second = square[None]
  moments = em.Moments(counts, first, second, total, weight)
  return em.as_runs(em.recenter(family, moments, means))


@functools.cache
def _block_of(family):
  def block(params, x, weight):
    natural, constant, center = params
    statistics = PRODUCTS[family].statistics(x - center[None])
    joint = constant[:, None] + dot(natural, statistics.T)
    responsibilities, log_prob = em.normalize(joint)
    weighted = responsibilities * weight[None]
    return (
      weighted.sum(axis=1),
      dot(weighted, statistics),
      dot(weight, log_prob),
      weight.sum(),
    )

  return block

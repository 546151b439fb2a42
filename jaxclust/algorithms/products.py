"""The E-step as matrix products, for families whose density allows it.

The log-joint of tied, diagonal and spherical mixtures is linear in statistics
of the points, as densities of an exponential family are. The first D statistics
are the points themselves. The sum of `x x^T`, which a tied mixture needs too,
is a constant. Where products would lose digits the plain E-step is made
instead.

Axes: N points, D features, K components, F statistics, B rows of a block.
"""

import jax.numpy as jnp
from jax import lax

from jaxclust.algorithms import em, solver
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.algorithms.em import EM
from jaxclust.frames import dot
from jaxclust.rows import reduce_rows

PRODUCTS = 'tied', 'diag', 'spherical'

# Change of a log-density by rounding up to which products are used.
_TRUSTED = 1e-4


def _begin(mixture, rows):
  """The weighted sum `[D, D]` of `x x^T` for a tied mixture."""
  if em.family_of(mixture.params) != 'tied':
    return jnp.zeros((0, 0), rows.dtype)
  return reduce_rows(_square, (), rows, width=rows.shape[1])


def _square(params, x, weight):
  del params
  return dot((x * weight[:, None]).T, x)


def _sweep(mixture, square, rows):
  prepared = em.prepare(em.first_run(mixture.params))
  moments = lax.cond(
    _is_trusted(prepared, square, rows),
    lambda: _sum_products(prepared, square, rows),
    lambda: solver.sum_stats(EM, mixture, rows),
  )
  return moments, square


# The algorithm of the families that `PRODUCTS` names, with less work.
EM_BY_PRODUCTS = EM._replace(begin=_begin, sweep=_sweep)


def _is_trusted(prepared, square, rows):
  """Whether the terms of the log-joint are small enough for products."""
  _, lengths = _center(prepared)
  terms = lengths.max()
  if square.size:
    spread = jnp.sqrt(jnp.diagonal(square) / rows.weight.sum())
    inverse = _precision(prepared) * spread[None] * spread[:, None]
    terms = jnp.maximum(terms, jnp.sqrt(jnp.square(inverse).sum()))
  return jnp.finfo(terms.dtype).eps * terms < _TRUSTED


def _center(prepared):
  """The point `[D]` that statistics are about, and whitened squared distances
  `[K]` of the means from it: the origin, or the mean of the means, weighted
  with their precisions."""
  factor, means = prepared.precision_cholesky, prepared.params.means
  center = jnp.zeros_like(means[0])
  if factor.ndim == 2:
    weight = jnp.square(factor)
    center = (weight * means).sum(axis=0) / weight.sum(axis=0)
  whiten = FAMILIES[em.family_of(prepared.params)].whiten
  white = whiten(factor, means, center[None])
  return center, jnp.square(white).sum(axis=(1, 2))


def _precision(prepared):
  factor = prepared.precision_cholesky[0]
  return dot(factor.T, factor)


def _sum_products(prepared, square, rows):
  """The moments of a mixture, in runs `[1, ...]`."""
  family = em.family_of(prepared.params)
  center, lengths = _center(prepared)
  means = prepared.params.means - center[None]
  natural = _natural(prepared.precision_cholesky, means)
  constant = prepared.log_norm - 0.5 * lengths

  def block(params, x, weight):
    natural, constant, center = params
    statistics = _statistics(family, x - center[None])
    joint = constant[:, None] + dot(natural, statistics.T)
    responsibilities, log_prob = em.normalize(joint)
    weighted = responsibilities * weight[None]
    return (
      weighted.sum(axis=1),
      dot(weighted, statistics),
      dot(weight, log_prob),
      weight.sum(),
    )

  counts, sums, total, weight = reduce_rows(
    block,
    (natural, constant, center),
    rows,
    width=2 * natural.shape[1] + 3 * len(means) - rows.shape[1],
  )
  first, second = sums[:, : len(center)], sums[:, len(center) :]
  if square.size:  # the statistics leave out the quadratic term
    total = total - 0.5 * (_precision(prepared) * square).sum()
    second = square[None]
  moments = em.Moments(counts, first, second, total, weight)
  return em.as_runs(em.recenter(moments, means))


def _natural(factor, means):
  """The coefficients `[K, F]` of the statistics."""
  if factor.ndim == 3:
    return dot(dot(means, factor[0].T), factor[0])
  weight = jnp.square(factor)
  each = means.shape[1] // weight.shape[1]  # features that a weight is of
  return jnp.concatenate([weight * means, -0.5 * each * weight], axis=1)


def _statistics(family, x):
  """The statistics `[B, F]` of rows `[B, D]`."""
  if family == 'tied':
    return x
  squares = jnp.square(x)
  if family == 'spherical':
    squares = squares.mean(axis=1, keepdims=True)
  return jnp.concatenate([x, squares], axis=1)

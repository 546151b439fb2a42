"""What a given mixture says of points: densities, labels, samples, criteria.

All functions raise an InputError if shapes do not fit, or if x or weights are
not finite.

Axes: N points, D features, K components, B rows of a block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxclust import checks
from jaxclust.algorithms import em
from jaxclust.algorithms.covariances import color
from jaxclust.algorithms.em import GMMParams
from jaxclust.frames import Frame
from jaxclust.inputs import (
  bucket,
  check_values,
  on_any_mesh,
  padded_groups,
  place,
  weighted_sum,
)
from jaxclust.programs import compiled
from jaxclust.rows import map_rows

# Least points that a program draws, and most that share one with other numbers.
_LEAST_SAMPLES, _SHARED_SAMPLES = 128, 2**14


def log_prob(
  params: GMMParams, x: ArrayLike, *, block_size: int | None = None
) -> jax.Array:
  """Log-densities `[N]` of points `[N, D]`."""
  return _apply(_log_prob_block, params, x, block_size)


def outlier_score(
  params: GMMParams, x: ArrayLike, *, block_size: int | None = None
) -> jax.Array:
  """Surprises `-log p(x)` `[N]` of points `[N, D]`: higher is stranger."""
  return -log_prob(params, x, block_size=block_size)


def responsibilities(
  params: GMMParams, x: ArrayLike, *, block_size: int | None = None
) -> jax.Array:
  """Probabilities `[N, K]` of the components given each point of `[N, D]`."""
  shares = _apply(_responsibilities_block, params, x, block_size)
  return shares[:, : len(params.log_weights)]


def log_responsibilities(
  params: GMMParams, x: ArrayLike, *, block_size: int | None = None
) -> jax.Array:
  """Logarithms `[N, K]` of `responsibilities`, however small these are."""
  shares = _apply(_log_responsibilities_block, params, x, block_size)
  return shares[:, : len(params.log_weights)]


def predict(
  params: GMMParams, x: ArrayLike, *, block_size: int | None = None
) -> jax.Array:
  """Labels `[N]` int32 of the likeliest component of each point of `[N, D]`."""
  return _apply(_label_block, params, x, block_size)


def sample(key: jax.Array, params: GMMParams, num_samples: int) -> jax.Array:
  """Draws points `[num_samples, D]` from the mixture."""
  return sample_with_labels(key, params, num_samples)[0]


def sample_with_labels(
  key: jax.Array, params: GMMParams, num_samples: int
) -> tuple[jax.Array, jax.Array]:
  """The points of `sample`, and the components `[num_samples]` int32 that they
  are drawn from."""
  checks.check_key(key)
  checks.check_count('num_samples', num_samples, low=0)
  if checks.is_traced(key, params) or num_samples > _SHARED_SAMPLES:
    return _draw(key, params, num_samples)
  # Few points are the first of some more, so that few programs serve all.
  drawn = _draw(key, params, bucket(num_samples, _LEAST_SAMPLES))
  first = jax.tree.map(lambda a: np.asarray(a)[:num_samples], drawn)
  return jax.device_put(first)


@functools.partial(jax.jit, static_argnums=2)
def _draw(key, params, num_samples):
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
    drawn = params.means[k][None] + color(scale, noise)
    return jnp.where((labels == k)[:, None], drawn, x)

  x = lax.fori_loop(0, num_components, body, noise)
  return x, labels.astype(jnp.int32)


def bic(
  params: GMMParams, x: ArrayLike, sample_weight: ArrayLike | None = None
) -> jax.Array:
  """Bayesian information criterion of the points `[N, D]`; lower is better."""
  weight = weighted_sum(sample_weight, np.ones(len(x), np.float32))
  total = weighted_sum(sample_weight, log_prob(params, x))
  return num_parameters(params) * jnp.log(weight) - 2 * total


def aic(
  params: GMMParams, x: ArrayLike, sample_weight: ArrayLike | None = None
) -> jax.Array:
  """Akaike information criterion of the points `[N, D]`; lower is better."""
  total = weighted_sum(sample_weight, log_prob(params, x))
  return 2 * num_parameters(params) - 2 * total


def num_parameters(params: GMMParams) -> int:
  """Free numbers of the mixture."""
  num_components, num_features = params.means.shape
  each = params.scale_tril.size
  if params.scale_tril.ndim == 3:  # of a triangle
    each = len(params.scale_tril) * num_features * (num_features + 1) // 2
  return each + num_components * num_features + num_components - 1


@on_any_mesh
def _apply(block, params, x, block_size=None):
  """`block(prepared, x [B, D]) -> [B, ...]` of points `[N, D]`."""
  rows = check_values(place(x, block_size=block_size))
  checks.check_features(x, params.means.shape[-1])
  size = padded_groups(len(params.log_weights), rows)
  return rows.trim(
    _map_about_means(block, em.pad(params, size, rows.dtype), rows)
  )


@functools.partial(compiled, static=(0,))
def _map_about_means(block, params, rows):
  active = (params.log_weights > -jnp.inf)[:, None]
  offset = jnp.mean(params.means, axis=0, where=active)
  frame = Frame(offset, jnp.ones((), offset.dtype))
  params = em.in_frame(params, frame)
  return map_rows(
    block,
    em.prepare(params),
    dataclasses.replace(rows, frame=frame),
    width=params.means.size,
  )


def _log_prob_block(prepared, x):
  return jax.nn.logsumexp(em.log_joint(prepared, x), axis=0)


def _responsibilities_block(prepared, x):
  return jax.nn.softmax(em.log_joint(prepared, x), axis=0).T


def _log_responsibilities_block(prepared, x):
  return jax.nn.log_softmax(em.log_joint(prepared, x), axis=0).T


def _label_block(prepared, x):
  return jnp.argmax(em.log_joint(prepared, x), axis=0).astype(jnp.int32)

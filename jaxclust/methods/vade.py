"""VaDE: a variational autoencoder whose prior is a mixture of Gaussians.

The network's code is the mean of q(z | x); a linear layer on it gives the
variances. The loss is the negative of the evidence lower bound: the error of a
reconstruction from a draw of z, and the divergence of q(z, c | x) from the
mixture, whose components c are the clusters. Network and mixture descend
together, from an autoencoder and a mixture of its codes.

Axes: B batch, N images, D numbers of an embedding, K components.

Reference:
  Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding: an
    unsupervised and generative approach to clustering,
    https://doi.org/10.24963/ijcai.2017/273
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclust import checks
from jaxclust.algorithms import gmm
from jaxclust.algorithms.assignment import MIXTURE
from jaxclust.algorithms.gmm import GMMParams
from jaxclust.frames import dot
from jaxclust.methods.autoencoder import check_decoder
from jaxclust.methods.method import Method, apply_network, per_image

# Share of the codes' variance that q(z | x) starts with.
_FIRST_SHARE = 0.1

# Least logarithm of a variance.
_LOWEST = -12.0


@functools.cache
def vade(
  network: nn.Module,
  *,
  num_clusters: int,
  num_restarts: int = 5,
  deviation: float = 0.2,
  reg: float = 1e-2,
) -> Method:
  """The method of a network, whose parameters the stage before has trained.

  Args:
    network: an autoencoder.
    num_clusters: K.
    num_restarts: of the mixture that the prior starts from.
    deviation: standard deviation of a pixel about its reconstruction; a small
      one makes reconstructions weigh more.
    reg: ridge of that mixture, in units of the codes' mean variance.
  """

  def check(num_images):
    check_decoder(network)
    checks.check_groups('num_clusters', num_clusters, num_images)
    checks.check_count('num_restarts', num_restarts)
    checks.check_number('deviation', deviation, low=1e-3)
    checks.check_number('reg', reg)

  apply = functools.partial(apply_network, network)
  return Method(
    init=functools.partial(_init, network, num_clusters),
    loss=per_image(functools.partial(_losses, network, deviation), network),
    embed=functools.partial(apply, 'encode'),
    decode=functools.partial(apply, 'decode'),
    operations=network.count_operations(),
    code_size=network.code_size(),
    start=functools.partial(_start, num_restarts, reg),
    assigner=MIXTURE,
    clusters=mixture_of,
    check=check,
  )


def _init(network, num_clusters, key, previous):
  if previous is None:
    previous = network.init(key, jnp.zeros((1, *network.image_shape)))
  size = network.code_size()
  return {
    'network': previous,
    'spread': {'kernel': jnp.zeros((size, size)), 'bias': jnp.zeros(size)},
    'logits': jnp.zeros(num_clusters),
    'means': jnp.zeros((num_clusters, size)),
    'log_variances': jnp.zeros((num_clusters, size)),
  }


def _start(num_restarts, reg, key, params, x):
  """The prior is a mixture of the codes `[N, D]`."""
  options = {'num_components': len(params['means']), 'covariance': 'diag'}
  options |= {'num_restarts': num_restarts, 'reg': reg}
  found = gmm.fit(key, x, **options).params
  first = jnp.log(_FIRST_SHARE * x.var(axis=0) + jnp.exp(_LOWEST))
  return params | {
    'spread': params['spread'] | {'bias': first},
    'logits': found.log_weights,
    'means': found.means,
    'log_variances': 2 * jnp.log(found.scale_tril),
  }


def _losses(network, deviation, params, batch):
  """The negative of the lower bound `[B]`, but for a constant."""
  mean = apply_network(network, 'encode', params, batch.views[:, 0])
  spread = params['spread']
  log_variance = dot(mean, spread['kernel']) + spread['bias'][None]
  log_variance = jnp.maximum(log_variance, _LOWEST)
  noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))
  z = mean + jnp.exp(log_variance / 2) * noise(batch.keys)
  rebuilt = apply_network(network, 'decode', params, z)
  errors = jnp.square(rebuilt - batch.wanted).sum(axis=(1, 2, 3))
  prior = mixture_of(params)
  return errors / (2 * deviation**2) + divergence(prior, mean, log_variance, z)


def mixture_of(params: dict) -> GMMParams:
  """The prior, as a mixture with diagonal covariances."""
  deviations = jnp.exp(params['log_variances'] / 2)
  weights = jax.nn.log_softmax(params['logits'])
  return GMMParams(weights, params['means'], deviations)


def divergence(
  prior: GMMParams, mean: jax.Array, log_variance: jax.Array, z: jax.Array
) -> jax.Array:
  """KL divergences `[B]` of q(z, c | x) from the prior (Jiang, eq. 12).

  Args:
    prior: of K components, diagonal.
    mean: `[B, D]` of q(z | x).
    log_variance: `[B, D]`.
    z: `[B, D]` draws, whose responsibilities stand for q(c | x).
  """
  variances = jnp.square(prior.scale_tril)[None]  # [1, K, D]

  def distances(x, spread):
    apart = jnp.square(x[:, None] - prior.means[None]) + spread
    return ((apart / variances) + jnp.log(variances)).sum(axis=2) / 2

  q = jax.nn.softmax(prior.log_weights[None] - distances(z, 0.0), axis=1)
  spread = jnp.exp(log_variance)[:, None]
  ratio = jnp.log(jnp.maximum(q, 1e-30)) - prior.log_weights[None]
  crossed = (q * (distances(mean, spread) + ratio)).sum(axis=1)
  return crossed - (1 + log_variance).sum(axis=1) / 2

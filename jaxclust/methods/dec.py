"""DEC and IDEC: clusters sharpened together with the representation.

An image belongs to cluster k with a share `q_k` that falls with the distance of
its embedding from the center `mu_k` (Student's t with one degree of freedom).
The loss is the divergence of these shares from targets `p_k ~ q_k^2 / f_k` with
`f_k = sum_n q_nk`, which are made anew before each epoch. DEC trains by the
divergence alone. IDEC adds the reconstruction of the image.

Axes: B batch, N images, D numbers of an embedding, K clusters.

References:
  Xie, Girshick and Farhadi (2016), Unsupervised deep embedding for clustering
    analysis, https://proceedings.mlr.press/v48/xieb16.html
  Guo, Gao, Liu and Yin (2017), Improved deep embedded clustering with local
    structure preservation, https://doi.org/10.24963/ijcai.2017/243
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclust import checks
from jaxclust.algorithms import kmeans
from jaxclust.algorithms.assignment import by_shares
from jaxclust.frames import dot
from jaxclust.methods.autoencoder import check_decoder, reconstruction_errors
from jaxclust.methods.method import Method, apply_network, per_image


@functools.cache
def dec(
  network: nn.Module,
  *,
  num_clusters: int,
  num_restarts: int = 20,
  divergence: float = 1.0,
  reconstruction: float = 0.0,
) -> Method:
  """The method of a network, whose parameters the stage before has trained.

  Args:
    network: an autoencoder.
    num_clusters: K.
    num_restarts: of the k-means that the centers start from.
    divergence: weight of the divergence; .1 in IDEC, 1 in DEC.
    reconstruction: weight of the mean squared error; 1 in IDEC, 0 in DEC.
  """

  def check(num_images):
    check_decoder(network)
    checks.check_groups('num_clusters', num_clusters, num_images)
    checks.check_count('num_restarts', num_restarts)
    checks.check_number('divergence', divergence)
    checks.check_number('reconstruction', reconstruction)

  def init(key, previous):
    if previous is None:
      previous = network.init(key, jnp.zeros((1, *network.image_shape)))
    centers = jnp.zeros((num_clusters, network.code_size()))
    return {'network': previous, 'centers': centers}

  def start(key, params, x):
    count, restarts = num_clusters, num_restarts
    found = kmeans.fit(key, x, num_clusters=count, num_restarts=restarts)
    return params | {'centers': found.centers}

  def losses_of(params, batch):
    seen = batch.views[:, 0]
    embeddings = network.apply(params['network'], seen, method='encode')
    q = shares(params['centers'], embeddings)
    total = divergence * kullback_leibler(batch.targets, q)
    if reconstruction:
      errors = reconstruction_errors(network, params['network'], batch)
      total = total + reconstruction * errors
    return total

  return Method(
    init=init,
    loss=per_image(losses_of, network),
    embed=functools.partial(apply_network, network, 'encode'),
    decode=functools.partial(apply_network, network, 'decode'),
    operations=network.count_operations(),
    code_size=network.code_size(),
    start=start,
    targets=lambda params, x, last: sharpened(shares(params['centers'], x)),
    assigner=STUDENT_T,
    clusters=lambda params: params['centers'],
    check=check,
  )


def shares(centers: jax.Array, x: jax.Array) -> jax.Array:
  """Shares q `[B, K]` of the clusters in embeddings `[B, D]` (Xie, eq. 1)."""
  offset = centers.mean(axis=0)[None]
  x, centers = x - offset, centers - offset
  lengths = jnp.square(centers).sum(axis=1)[None]
  norms = jnp.square(x).sum(axis=1)[:, None]
  squared = jnp.maximum(norms + lengths - 2 * dot(x, centers.T), 0)
  kernel = 1 / (1 + squared)
  return kernel / kernel.sum(axis=1, keepdims=True)


def kullback_leibler(p: jax.Array, q: jax.Array) -> jax.Array:
  """Divergences `[B]` of shares q `[B, K]` from targets p (Xie, eq. 2)."""
  ratio = jnp.log(jnp.where(p > 0, p, 1)) - jnp.log(jnp.maximum(q, 1e-30))
  return (p * ratio).sum(axis=1)


def sharpened(q: jax.Array) -> jax.Array:
  """Targets p `[N, K]` of the shares of all images (Xie, eq. 3)."""
  weight = jnp.square(q) / jnp.maximum(q.sum(axis=0), 1e-30)[None]
  return weight / weight.sum(axis=1, keepdims=True)


STUDENT_T = by_shares(shares, lambda centers: centers)._replace(
  predict=kmeans.predict  # the share falls with the distance
)

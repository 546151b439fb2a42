"""DCN: an autoencoder whose embeddings lie near the centers of clusters.

The loss of an image is the error of its reconstruction, and half the squared
distance of its embedding from the nearest center. The centers descend with the
network. Yang et al. move each by running means instead, which are steps along
the same gradient.

Axes: B batch, N images, D numbers of an embedding, K clusters.

Reference:
  Yang, Fu, Sidiropoulos and Hong (2017), Towards k-means-friendly spaces,
    https://proceedings.mlr.press/v70/yang17b.html
"""

import functools

import flax.linen as nn

from jaxclust import checks
from jaxclust.algorithms.assignment import nearest_center
from jaxclust.algorithms.distances import squared_distances
from jaxclust.methods.autoencoder import reconstruction_errors
from jaxclust.methods.dec import dec
from jaxclust.methods.method import Method, per_image


@functools.cache
def dcn(
  network: nn.Module,
  *,
  num_clusters: int,
  num_restarts: int = 20,
  closeness: float = 0.05,
) -> Method:
  """The method of a network, whose parameters the stage before has trained.

  Args:
    network: an autoencoder.
    num_clusters: K.
    num_restarts: of the k-means that the centers start from.
    closeness: weight of the squared distances (lambda of the paper).
  """

  def check(num_images):
    clusters.check(num_images)
    checks.check_number('closeness', closeness)

  def losses_of(params, batch):
    errors = reconstruction_errors(network, params['network'], batch)
    x = clusters.embed(params, batch.views[:, 0])
    squared = squared_distances(x, params['centers']).min(axis=0)
    return errors + closeness / 2 * squared

  clusters = dec(network, num_clusters=num_clusters, num_restarts=num_restarts)
  return clusters._replace(
    loss=per_image(losses_of, network),
    targets=None,
    assigner=nearest_center('euclidean'),
    check=check,
  )

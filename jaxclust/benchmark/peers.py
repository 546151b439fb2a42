"""The same work in other libraries, for `benchmark` to time.

A peer is a library, and perhaps an algorithm of it. It has a function for each
kind of work that it does: given arrays of NumPy, it returns a `Task`.

  seeding   x [N, D], num_clusters, num_restarts -> centers [R, K, D]
  kmeans    x, starts [R, K, D], num_steps [R], max_steps, tol -> centers
  em        x, GMMParams to start from, reg, num_steps -> log-likelihood
  training  a Training -> mean loss of an epoch

A task of k-means returns its centers, any other a function that returns the
objective. Only the libraries of a contest are imported.

Axes: N points or images, D features, K clusters or components, R restarts,
H height, W width, C channels.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclust.algorithms.em import GMMParams, family_of
from jaxclust.benchmark.contest import Task, quietly
from jaxclust.estimators.mixture import SHAPES


class Training(NamedTuple):
  """Epochs of an autoencoder by Adam, all in one order."""

  images: np.ndarray  # [N, H, W, C] uint8 or floats in [0, 1], in that order
  params: Sequence  # (kernel [3, 3, I, O], bias [O]) of each convolution
  num_levels: int  # of the encoder, whose convolutions come first
  batch_size: int
  learning_rate: float


class Peer(NamedTuple):
  """A library that may be installed."""

  modules: tuple[str, ...]  # that it needs
  tasks: dict[str, Callable]  # kind of work -> (arguments) -> Task
  on_accelerator: Callable = lambda: False  # whether it uses that of JAX


def installed() -> dict[str, Peer]:
  """The peers that can be compared with on this machine.

  On an accelerator, these are only the peers that use it too.
  """
  on_cpu = jax.default_backend() == 'cpu'
  return {
    name: peer
    for name, peer in PEERS.items()
    if all(map(importlib.util.find_spec, peer.modules))
    and (on_cpu or peer.on_accelerator())
  }


def tasks(kind: str, *arguments: Any, **options: Any) -> dict[str, Task]:
  """The tasks of all installed peers that do a kind of work."""
  arguments = [
    np.asarray(a) if isinstance(a, jax.Array) else a for a in arguments
  ]
  return {
    name: peer.tasks[kind](*arguments, **options)
    for name, peer in installed().items()
    if kind in peer.tasks
  }


def versions() -> dict[str, str]:
  """The version of each module of the installed peers."""
  distributions = importlib.metadata.packages_distributions()
  return {
    module: importlib.metadata.version(distributions[module][0])
    for peer in installed().values()
    for module in peer.modules
  }


def _sklearn_seeding(x, num_clusters, num_restarts):
  from sklearn.cluster import kmeans_plusplus

  def seed(restart):
    return kmeans_plusplus(x, num_clusters, random_state=restart)[0]

  return Task(lambda: np.stack([seed(r) for r in range(num_restarts)]))


def _sklearn_kmeans(x, starts, num_steps, max_steps, tol, algorithm='lloyd'):
  from sklearn.cluster import KMeans

  del num_steps
  options = {'max_iter': max_steps, 'tol': tol, 'algorithm': algorithm}

  def fit(start):
    fitted = KMeans(len(start), init=start, n_init=1, **options).fit(x)
    return fitted.cluster_centers_

  return Task(quietly(lambda: np.stack([fit(start) for start in starts])))


def _sklearn_em(x, params: GMMParams, reg, num_steps):
  """scikit-learn adds an E-step after the steps, counted as a whole step."""
  from sklearn.mixture import GaussianMixture

  # In float64, scikit-learn would compute in float64.
  weights, means, precisions = (a.astype(x.dtype) for a in _natural(params))
  mixture = GaussianMixture(
    len(means),
    covariance_type=family_of(params),
    weights_init=weights,
    means_init=means,
    precisions_init=precisions,
    init_params='random_from_data',
    reg_covar=reg,
    max_iter=num_steps,
    tol=0,
  )

  def run():
    fitted = mixture.fit(x)
    return lambda: float(fitted.score(x))

  return Task(quietly(run), num_steps + 1)


def _natural(params):
  """Weights, means and precisions in the shapes of scikit-learn."""
  log_weights, means, scale = (np.asarray(a, np.float64) for a in params)
  if scale.ndim == 3:
    inverse = np.linalg.inv(scale)
    precisions = inverse.mT @ inverse
  else:
    precisions = 1 / scale**2
  weights = np.exp(log_weights)
  return weights / weights.sum(), means, SHAPES[family_of(params)](precisions)


def _faiss_kmeans(x, starts, num_steps, **limits):
  """faiss has no tolerance: it makes the steps that ours needed."""
  import faiss

  del limits

  def fit(start, count):
    fitted = faiss.Kmeans(
      x.shape[1],
      len(start),
      niter=int(count),
      max_points_per_centroid=len(x),
      min_points_per_centroid=1,
    )
    fitted.train(x, init_centroids=start)
    return fitted.centroids

  def run():
    return np.stack([fit(*s) for s in zip(starts, num_steps, strict=True)])

  return Task(run)


def _in_module(module, kind):
  """The task of a kind in a module that is imported at its first use."""

  def task(*arguments, **options):
    found = importlib.import_module(f'jaxclust.benchmark.{module}')
    return getattr(found, kind)(*arguments, **options)

  return task


def _torch_sees_the_device():
  import torch

  return jax.default_backend() == 'gpu' and torch.cuda.is_available()


PEERS = {
  'scikit-learn': Peer(
    ('sklearn',),
    {'seeding': _sklearn_seeding, 'kmeans': _sklearn_kmeans, 'em': _sklearn_em},
  ),
  'scikit-learn, Elkan': Peer(
    ('sklearn',),
    {'kmeans': functools.partial(_sklearn_kmeans, algorithm='elkan')},
  ),
  'faiss': Peer(('faiss',), {'kmeans': _faiss_kmeans}),
  'torch': Peer(
    ('torch',),
    {n: _in_module('torch_peer', n) for n in ('kmeans', 'em', 'training')},
    _torch_sees_the_device,
  ),
  'Keras': Peer(
    ('keras', 'tensorflow'), {'training': _in_module('keras_peer', 'training')}
  ),
}

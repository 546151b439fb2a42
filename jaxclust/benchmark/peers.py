"""The same work in other libraries, for `benchmark` to time.

A peer has a function for each kind of work that it does: given arrays of NumPy,
it returns a `Task`. Only the libraries of a contest are imported.

  seeding   x [N, D], num_clusters, num_restarts
  kmeans    x, starts [R, K, D], num_steps [R], max_steps, tol
  lloyd     the same, in peers whose memory does not grow with N K
  minibatch x, starts [K, D], batch_size; as many batches as x fills
  em        x, GMMParams to start from, reg, num_steps
  training  images in their order [N, H, W, C] uint8 or floats in [0, 1],
            (kernel [3, 3, I, O], bias [O]) of each convolution, batch_size,
            learning_rate

Axes: N points or images, D features, K clusters or components, R restarts,
H height, W width, C channels.
"""

import contextlib
import functools
import sys
from typing import Any

import jax
import numpy as np

from jaxclust.algorithms.em import family_of
from jaxclust.benchmark import keras_peer, torch_peer
from jaxclust.benchmark.contest import Task, mean_inertia
from jaxclust.estimators.mixture import SHAPES


def tasks(kind: str, *arguments: Any, **options: Any) -> dict[str, Task]:
  """The tasks of the installed peers that do a kind of work.

  On an accelerator, this is PyTorch alone, if it uses that too.
  """
  arguments = [
    np.asarray(a) if isinstance(a, jax.Array) else a for a in arguments
  ]
  on_cpu = jax.default_backend() == 'cpu'
  found = {}
  for name, make in PEERS[kind].items():
    with contextlib.suppress(ModuleNotFoundError):
      if on_cpu or (name == 'torch' and torch_peer.sees_the_device()):
        found[name] = make(*arguments, **options)
  return found


def versions() -> dict[str, str]:
  """The version of each module of a peer that has been imported."""
  modules = ('sklearn', 'faiss', 'torch', 'keras', 'tensorflow')
  return {m: sys.modules[m].__version__ for m in modules if m in sys.modules}


def _sklearn_seeding(x, num_clusters, num_restarts):
  from sklearn.cluster import kmeans_plusplus

  def run():
    seeds = range(num_restarts)
    starts = [kmeans_plusplus(x, num_clusters, random_state=s) for s in seeds]
    return mean_inertia([centers for centers, _ in starts], x)

  return Task(run)


def _sklearn_kmeans(x, starts, num_steps, max_steps, tol, algorithm='lloyd'):
  from sklearn.cluster import KMeans

  options = {'max_iter': max_steps, 'tol': tol, 'algorithm': algorithm}

  def run():
    fits = [KMeans(len(s), init=s, n_init=1, **options).fit(x) for s in starts]
    return mean_inertia([fit.cluster_centers_ for fit in fits], x)

  return Task(run)


def _sklearn_minibatch(x, starts, batch_size):
  from sklearn.cluster import MiniBatchKMeans

  options = {'init': starts, 'n_init': 1, 'random_state': 0}
  no_early_stop = {'tol': 0, 'max_no_improvement': None}
  options |= {'max_iter': 1, 'reassignment_ratio': 0, **no_early_stop}

  def run():
    fitted = MiniBatchKMeans(len(starts), batch_size=batch_size, **options)
    fitted.fit(x)
    return lambda: float(fitted.inertia_)

  return Task(run)


def _sklearn_em(x, params, reg, num_steps):
  """Steps of EM that go on from each turn to the next.

  scikit-learn adds an E-step after the steps, counted as a whole step.
  """
  from sklearn.mixture import GaussianMixture

  log_weights, means, scale = map(np.asarray, params)
  root = np.linalg.inv(scale).mT if scale.ndim == 3 else 1 / scale
  family = family_of(params)
  mixture = GaussianMixture(
    len(means),
    covariance_type=family,
    reg_covar=reg,
    max_iter=num_steps,
    tol=0,
    warm_start=True,
  )
  mixture.weights_, mixture.means_ = np.exp(log_weights), means
  mixture.precisions_cholesky_ = SHAPES[family](root)
  mixture.converged_, mixture.lower_bound_ = False, -np.inf

  def run():
    score = mixture.fit(x).score
    return lambda: float(score(x))

  return Task(run, num_steps + 1)


def _faiss_kmeans(x, starts, num_steps, **limits):
  """faiss has no tolerance: it makes the steps that ours needed."""
  import faiss

  bounds = {'min_points_per_centroid': 1, 'max_points_per_centroid': len(x)}

  def fit(start, count):
    shape = x.shape[1], len(start)
    fitted = faiss.Kmeans(*shape, niter=int(count), **bounds)
    fitted.train(x, init_centroids=start)
    return fitted.centroids

  def run():
    return mean_inertia([*map(fit, starts, num_steps)], x)

  return Task(run)


_LLOYD = {'scikit-learn': _sklearn_kmeans, 'faiss': _faiss_kmeans}
_ELKAN = functools.partial(_sklearn_kmeans, algorithm='elkan')

# Kind of work -> what makes the task of each peer.
PEERS = {
  'seeding': {'scikit-learn': _sklearn_seeding},
  'kmeans': {
    **_LLOYD,
    'scikit-learn, Elkan': _ELKAN,
    'torch': torch_peer.kmeans,
  },
  'lloyd': _LLOYD,
  'minibatch': {'scikit-learn': _sklearn_minibatch},
  'em': {'scikit-learn': _sklearn_em, 'torch': torch_peer.em},
  'training': {'torch': torch_peer.training, 'Keras': keras_peer.training},
}

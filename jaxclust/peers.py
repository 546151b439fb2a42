"""The libraries that the benchmark compares with, behind one face.

A peer is a table of tasks; each is prepared with its data. Seedings and fits
of k-means return centers `[R, K, D]`, steps of EM a function that tells the
mean log-likelihood, an epoch of training its mean loss. A library is imported
when it is asked for.

Axes: N points or images, D features, K clusters or components, R restarts,
H height, W width, C channels.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import math
import pathlib
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclust import gmm
from jaxclust.gmm import GMMParams


class Task(NamedTuple):
  """Work to be timed."""

  run: Callable[[], Any]  # ends when the work has ended
  num_parts: int = 1  # of equal work, to divide the time by


class Training(NamedTuple):
  """Epochs of an autoencoder by Adam, all in one order."""

  images: np.ndarray  # [N, H, W, C] uint8 or floats in [0, 1], in that order
  params: Sequence  # (kernel [3, 3, I, O], bias [O]) of each convolution
  num_levels: int  # of the encoder, whose convolutions come first
  batch_size: int
  learning_rate: float


# Peer -> the modules that it needs.
_MODULES = {
  'scikit-learn': ('sklearn',),
  'scikit-learn, Elkan': ('sklearn',),
  'faiss': ('faiss',),
  'torch': ('torch',),
  'Keras': ('keras', 'tensorflow'),
}


def installed() -> dict[str, dict[str, Callable]]:
  """The tasks of each peer that can be compared with on this machine: on an
  accelerator only of the one that uses it too."""
  found = [n for n, modules in _MODULES.items() if all(map(_is_found, modules))]
  if jax.default_backend() != 'cpu':
    found = [n for n in found if n == 'torch' and _torch_sees_the_device()]
  return {name: _TASKS[name] for name in found}


def versions() -> dict[str, str]:
  """The version of each module of the peers that `installed` names."""
  distributions = importlib.metadata.packages_distributions()
  return {
    module: importlib.metadata.version(distributions[module][0])
    for name in installed()
    for module in _MODULES[name]
  }


def _is_found(module):
  return importlib.util.find_spec(module) is not None


def _torch_sees_the_device():
  import torch

  return jax.default_backend() == 'gpu' and torch.cuda.is_available()


def _sklearn_seeding(x, num_clusters, num_restarts):
  from sklearn.cluster import kmeans_plusplus

  def seed(restart):
    return kmeans_plusplus(x, num_clusters, random_state=restart)[0]

  return Task(lambda: np.stack([seed(r) for r in range(num_restarts)]))


def _sklearn_kmeans(x, starts, max_steps, tol, num_steps, algorithm='lloyd'):
  from sklearn.cluster import KMeans

  del num_steps
  options = {
    'max_iter': max_steps,
    'tol': tol,
    'n_init': 1,
    'algorithm': algorithm,
  }

  def fit(start):
    return KMeans(len(start), init=start, **options).fit(x).cluster_centers_

  return Task(_quietly(lambda: np.stack([fit(start) for start in starts])))


def _faiss_kmeans(x, starts, max_steps, tol, num_steps):
  """faiss does not stop by itself: it makes the steps that were needed."""
  import faiss

  del max_steps, tol

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


def _sklearn_em(x, params, reg, num_steps):
  """Beside its steps, it makes an E-step after them, taken for a whole step."""
  from sklearn.mixture import GaussianMixture

  # All of them in the type of x, or scikit-learn would compute in float64.
  weights, means, precisions = (a.astype(x.dtype) for a in _natural(params))
  mixture = GaussianMixture(
    len(means),
    covariance_type=gmm.family_of(params),
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

  return Task(_quietly(run), num_steps + 1)


def _quietly(run):
  """Without the warning that steps have run out, which is what is asked for."""

  def quiet():
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return run()

  return quiet


def _natural(params: GMMParams):
  """Weights, means and precisions in the shapes of scikit-learn."""
  family = gmm.family_of(params)
  scale = np.asarray(params.scale_tril, np.float64)
  if family in ('full', 'tied'):
    inverse = np.linalg.inv(scale)
    precisions = inverse.swapaxes(1, 2) @ inverse
  else:
    precisions = 1 / scale**2
  if family == 'tied':
    precisions = precisions[0]
  elif family == 'spherical':
    precisions = precisions[:, 0]
  weights = np.exp(np.asarray(params.log_weights, np.float64))
  return weights / weights.sum(), np.asarray(params.means), precisions


def _to_torch(*arrays):
  """Arrays as tensors on the accelerator, or on the CPU where JAX is there."""
  import torch

  device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
  return [torch.tensor(np.asarray(a), device=device) for a in arrays]


def _torch_kmeans(x, starts, max_steps, tol, num_steps):
  """Lloyd's algorithm as one writes it, for the steps that were needed."""
  import torch

  del max_steps, tol
  x, starts = _to_torch(x, starts)

  def fit(centers, count):
    ones = torch.ones(len(x), device=x.device)
    for _ in range(int(count)):
      lengths = centers.square().sum(1)
      labels = torch.addmm(lengths, x, centers.T, alpha=-2).argmin(1)
      sums = torch.zeros_like(centers).index_add_(0, labels, x)
      counts = torch.zeros(len(centers), device=x.device)
      counts = counts.index_add_(0, labels, ones)[:, None]
      centers = torch.where(counts > 0, sums / counts, centers)
    return centers

  def run():
    fits = [fit(*s) for s in zip(starts, num_steps, strict=True)]
    return torch.stack(fits).cpu().numpy()

  return Task(run)


def _torch_em(x, params, reg, num_steps):
  """EM as one writes it, over all points at once."""
  import torch

  family = gmm.family_of(params)
  x, log_weights, means, scale = _to_torch(x, *params)
  num_features = x.shape[1]
  eye = torch.eye(num_features, device=x.device)
  squares = x.square() if family in ('diag', 'spherical') else None
  total_square = x.T @ x if family == 'tied' else None

  def inverse_of(scale):
    return torch.linalg.solve_triangular(scale, eye, upper=False)

  def squared_distances(means, scale):
    if family == 'full':
      inverses = inverse_of(scale)
      offsets = (means[:, None] @ inverses.mT)[:, 0]
      white = (
        torch.addmm(offset, x, inverse.T, beta=-1)
        for offset, inverse in zip(offsets, inverses, strict=True)
      )
      return torch.stack([w.square().sum(1) for w in white], 1)
    if family == 'tied':
      inverse = inverse_of(scale)[0]
      white, centers = x @ inverse.T, means @ inverse.T
      lengths = white.square().sum(1, keepdim=True) + centers.square().sum(1)
      return torch.addmm(lengths, white, centers.T, alpha=-2)
    weight = scale.expand(means.shape) ** -2
    lengths = (weight * means.square()).sum(1)
    cross = torch.addmm(lengths, x, (weight * means).T, alpha=-2)
    return torch.addmm(cross, squares, weight.T)

  def e_step(log_weights, means, scale):
    if family in ('full', 'tied'):
      log_det = scale.diagonal(dim1=1, dim2=2).log().sum(1)
    else:
      log_det = scale.log().mean(1) * num_features
    norm = log_weights - log_det - 0.5 * num_features * math.log(2 * math.pi)
    joint = torch.add(norm, squared_distances(means, scale), alpha=-0.5)
    log_prob = joint.logsumexp(1)
    return (joint - log_prob[:, None]).exp(), log_prob.mean()

  def scatter(share, mean):
    apart = x - mean
    return (apart * share[:, None]).T @ apart

  def m_step(shares):
    counts = shares.sum(0)
    means = shares.T @ x / counts[:, None]
    if family == 'full':
      parts = zip(shares.T, means, strict=True)
      covariance = torch.stack([scatter(*part) for part in parts])
      covariance = covariance / counts[:, None, None]
    elif family == 'tied':
      between = (means * counts[:, None]).T @ means
      covariance = (total_square - between)[None] / len(x)
    else:
      covariance = shares.T @ squares / counts[:, None] - means.square()
    if family == 'spherical':
      covariance = covariance.mean(1, keepdim=True)
    if family in ('full', 'tied'):
      scale = torch.linalg.cholesky(covariance + reg * eye)
    else:
      scale = (covariance + reg).sqrt()
    return (counts / len(x)).log(), means, scale

  def run():
    current = log_weights, means, scale
    for _ in range(num_steps):
      shares, _ = e_step(*current)
      current = m_step(shares)
    if x.is_cuda:
      torch.cuda.synchronize()
    return lambda: float(e_step(*current)[1])

  return Task(run, num_steps)


def _torch_training(training: Training):
  """The network in channels last, as fits the CPU, and the images resident."""
  import torch
  from torch.nn import functional

  images, *flat = _to_torch(
    training.images, *(array for pair in training.params for array in pair)
  )
  images = images.permute(0, 3, 1, 2)  # and so in channels last
  scale = 255 if images.dtype == torch.uint8 else 1
  kernels = [
    kernel.permute(3, 2, 0, 1)
    .contiguous(memory_format=torch.channels_last)
    .requires_grad_()
    for kernel in flat[::2]
  ]
  biases = [bias.requires_grad_() for bias in flat[1::2]]
  adam = torch.optim.Adam([*kernels, *biases], lr=training.learning_rate)
  num_levels = training.num_levels

  def network(x):
    sizes = []
    for i, layer in enumerate(zip(kernels, biases, strict=True)):
      if i > num_levels:
        x = functional.interpolate(x, scale_factor=2, mode='nearest')
        height, width = sizes[2 * num_levels - i]
        x = x[:, :, :height, :width]
      x = functional.conv2d(x, *layer, padding=1).relu()
      if i < num_levels:
        sizes.append(x.shape[2:])
        x = functional.max_pool2d(x, 2, ceil_mode=True)
    return x

  def run():
    total = torch.zeros((), device=images.device)
    for batch in images.split(training.batch_size):
      pixels = batch.float() / scale
      loss = functional.mse_loss(network(pixels), pixels)
      adam.zero_grad()
      loss.backward()
      adam.step()
      total += loss.detach() * len(batch)
    return float(total) / len(images)

  return Task(run)


class _KerasWorker:
  """A process that trains an epoch for each line that it is sent."""

  def __init__(self, training):
    folder = tempfile.TemporaryDirectory()
    path = pathlib.Path(folder.name, 'training.npz')
    arrays = training._asdict()
    for i, (kernel, bias) in enumerate(arrays.pop('params')):
      arrays |= {f'kernel_{i}': kernel, f'bias_{i}': bias}
    np.savez(path, **arrays)
    script = pathlib.Path(__file__).with_name('keras_worker.py')
    self._process = subprocess.Popen(
      [sys.executable, script, path],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    weakref.finalize(self, _end, self._process, folder)

  def __call__(self):
    with contextlib.suppress(BrokenPipeError):  # told below
      self._process.stdin.write('epoch\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'the process of Keras ended with status {self._process.wait()}: '
        'see whether `import keras, tensorflow` works'
      )
    return float(line)


def _end(process, folder):
  process.communicate()
  folder.cleanup()


def _keras_training(training: Training):
  return Task(_KerasWorker(training))


_TASKS = {
  'scikit-learn': {
    'seeding': _sklearn_seeding,
    'kmeans': _sklearn_kmeans,
    'em': _sklearn_em,
  },
  'scikit-learn, Elkan': {
    'kmeans': functools.partial(_sklearn_kmeans, algorithm='elkan')
  },
  'faiss': {'kmeans': _faiss_kmeans},
  'torch': {
    'kmeans': _torch_kmeans,
    'em': _torch_em,
    'training': _torch_training,
  },
  'Keras': {'training': _keras_training},
}

"""k-means, EM and the autoencoder in PyTorch, as one writes them.

Axes: N points or images, D features, K clusters or components, R restarts.
"""

import math

import jax
import numpy as np
import torch
from torch.nn import functional

from jaxclust.algorithms.em import GMMParams, family_of
from jaxclust.benchmark.contest import Task
from jaxclust.benchmark.peers import Training


def _tensors(*arrays):
  """Arrays as tensors on the accelerator, or on the CPU where JAX is there."""
  device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
  return [torch.tensor(np.asarray(a), device=device) for a in arrays]


def kmeans(x, starts, num_steps, **limits) -> Task:
  """Lloyd's algorithm, for the steps that ours needed."""
  del limits
  x, starts = _tensors(x, starts)
  ones = torch.ones(len(x), device=x.device)

  def fit(centers, count):
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


class _Full:
  """What EM needs of a family of covariances, over all points at once."""

  def __init__(self, x, reg):
    self.x, self.reg = x, reg
    self.eye = torch.eye(x.shape[1], device=x.device)

  def invert(self, scale):
    return torch.linalg.solve_triangular(scale, self.eye, upper=False)

  def squared_distances(self, means, scale):
    """Mahalanobis distances `[N, K]`."""
    inverses = self.invert(scale)
    offsets = (means[:, None] @ inverses.mT)[:, 0]
    white = (
      torch.addmm(offset, self.x, inverse.T, beta=-1)
      for offset, inverse in zip(offsets, inverses, strict=True)
    )
    return torch.stack([w.square().sum(1) for w in white], 1)

  def half_log_det(self, scale):
    return scale.diagonal(dim1=1, dim2=2).log().sum(1)

  def covariance(self, shares, counts, means):
    def scatter(share, mean):
      apart = self.x - mean
      return (apart * share[:, None]).T @ apart

    parts = [scatter(*part) for part in zip(shares.T, means, strict=True)]
    return torch.stack(parts) / counts[:, None, None]

  def factor(self, covariance):
    return torch.linalg.cholesky(covariance + self.reg * self.eye)


class _Tied(_Full):
  def __init__(self, x, reg):
    super().__init__(x, reg)
    self.total = x.T @ x

  def squared_distances(self, means, scale):
    inverse = self.invert(scale)[0]
    white, centers = self.x @ inverse.T, means @ inverse.T
    lengths = white.square().sum(1, keepdim=True) + centers.square().sum(1)
    return torch.addmm(lengths, white, centers.T, alpha=-2)

  def covariance(self, shares, counts, means):
    between = (means * counts[:, None]).T @ means
    return (self.total - between)[None] / len(self.x)


class _Diag(_Full):
  def __init__(self, x, reg):
    super().__init__(x, reg)
    self.squares = x.square()

  def squared_distances(self, means, scale):
    weight = scale.expand(means.shape) ** -2
    lengths = (weight * means.square()).sum(1)
    cross = torch.addmm(lengths, self.x, (weight * means).T, alpha=-2)
    return torch.addmm(cross, self.squares, weight.T)

  def half_log_det(self, scale):
    return scale.log().mean(1) * self.x.shape[1]

  def covariance(self, shares, counts, means):
    return shares.T @ self.squares / counts[:, None] - means.square()

  def factor(self, covariance):
    return (covariance + self.reg).sqrt()


class _Spherical(_Diag):
  def covariance(self, shares, counts, means):
    return super().covariance(shares, counts, means).mean(1, keepdim=True)


_FAMILIES = {
  'full': _Full,
  'tied': _Tied,
  'diag': _Diag,
  'spherical': _Spherical,
}


def em(x, params: GMMParams, reg, num_steps) -> Task:
  """Steps of EM."""
  x, *start = _tensors(x, *params)
  family = _FAMILIES[family_of(params)](x, reg)
  log_norm = 0.5 * x.shape[1] * math.log(2 * math.pi)

  def e_step(log_weights, means, scale):
    norm = log_weights - family.half_log_det(scale) - log_norm
    distances = family.squared_distances(means, scale)
    joint = torch.add(norm, distances, alpha=-0.5)
    log_prob = joint.logsumexp(1)
    return (joint - log_prob[:, None]).exp(), log_prob.mean()

  def m_step(shares):
    counts = shares.sum(0)
    means = shares.T @ x / counts[:, None]
    covariance = family.covariance(shares, counts, means)
    return (counts / len(x)).log(), means, family.factor(covariance)

  def run():
    current = start
    for _ in range(num_steps):
      current = m_step(e_step(*current)[0])
    if x.is_cuda:
      torch.cuda.synchronize()
    return lambda: float(e_step(*current)[1])

  return Task(run, num_steps)


def training(training: Training) -> Task:
  """Epochs in channels last, which suit a CPU, with the images resident."""
  images, *flat = _tensors(
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
    mean = float(total) / len(images)
    return lambda: mean

  return Task(run)

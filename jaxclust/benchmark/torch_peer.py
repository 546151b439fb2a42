"""k-means, EM and the autoencoder in PyTorch, as one writes them.

Arguments are those of `peers`. PyTorch is imported where it is needed, as it
may be missing.

Axes: N points or images, D features, K clusters or components, R restarts.
"""

import math

import jax
import numpy as np

from jaxclust.algorithms.em import family_of
from jaxclust.benchmark.contest import Task, mean_inertia


def sees_the_device():
  """Whether PyTorch can use the accelerator that JAX uses."""
  import torch

  return jax.default_backend() == 'gpu' and torch.cuda.is_available()


def _tensors(*arrays):
  """Arrays as tensors on the accelerator, or on the CPU where JAX is there."""
  import torch

  device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
  return [torch.tensor(np.asarray(a), device=device) for a in arrays]


def kmeans(x, starts, num_steps, **limits):
  """Lloyd's algorithm, for the steps that ours needed."""
  points, starts_there = _tensors(x, starts)
  ones = points.new_ones(len(x))

  def fit(centers, count):
    for _ in range(int(count)):
      lengths = centers.square().sum(1)
      labels = lengths.addmm(points, centers.T, alpha=-2).argmin(1)
      sums = centers.new_zeros(centers.shape).index_add_(0, labels, points)
      counts = ones.new_zeros(len(centers)).index_add_(0, labels, ones)[:, None]
      centers = (sums / counts).where(counts > 0, centers)
    return centers

  def run():
    fits = map(fit, starts_there, num_steps)
    return mean_inertia([centers.cpu().numpy() for centers in fits], x)

  return Task(run)


def em(x, params, reg, num_steps):
  """Steps of EM, over all points at once."""
  import torch

  family = family_of(params)
  x, *start = _tensors(x, *params)
  num_points, dim = x.shape
  log_norm = 0.5 * dim * math.log(2 * math.pi)
  # What no step changes.
  second = x.T @ x if family == 'tied' else x.square()
  ridge = reg * torch.eye(dim, device=x.device)

  def e_step(log_weights, means, scale):
    sides = scale if scale.ndim == 2 else scale.diagonal(dim1=1, dim2=2)
    norm = log_weights - sides.log().mean(1) * dim - log_norm
    distances = _squared_distances(family, x, second, means, scale)
    joint = norm.add(distances, alpha=-0.5)
    log_prob = joint.logsumexp(1)
    return (joint - log_prob[:, None]).exp(), log_prob.mean()

  def m_step(shares):
    counts = shares.sum(0)
    means = shares.T @ x / counts[:, None]
    covariance = _covariance(family, x, second, shares, counts, means)
    if covariance.ndim == 2:
      scale = (covariance + reg).sqrt()
    else:
      scale = torch.linalg.cholesky(covariance + ridge)
    return (counts / num_points).log(), means, scale

  def run():
    current = start
    for _ in range(num_steps):
      current = m_step(e_step(*current)[0])
    if x.is_cuda:
      torch.cuda.synchronize()
    return lambda: float(e_step(*current)[1])

  return Task(run, num_steps)


def _squared_distances(family, x, second, means, scale):
  """Mahalanobis distances `[N, K]`."""
  import torch

  if scale.ndim == 2:
    weight = scale.expand(means.shape) ** -2
    lengths = (weight * means.square()).sum(1)
    cross = lengths.addmm(x, (weight * means).T, alpha=-2)
    return cross.addmm(second, weight.T)
  eye = torch.eye(x.shape[1], device=x.device)
  inverses = torch.linalg.solve_triangular(scale, eye, upper=False)
  if family == 'tied':
    white, centers = x @ inverses[0].T, means @ inverses[0].T
    lengths = white.square().sum(1, keepdim=True) + centers.square().sum(1)
    return lengths.addmm(white, centers.T, alpha=-2)
  offsets = (means[:, None] @ inverses.mT)[:, 0]
  lengths = [
    offset.addmm(x, inverse.T, beta=-1).square().sum(1)
    for offset, inverse in zip(offsets, inverses, strict=True)
  ]
  return torch.stack(lengths, 1)


def _covariance(family, x, second, shares, counts, means):
  import torch

  if family == 'full':
    parts = []
    for share, mean in zip(shares.T, means, strict=True):
      apart = x - mean
      parts.append((apart * share[:, None]).T @ apart)
    return torch.stack(parts) / counts[:, None, None]
  if family == 'tied':
    between = (means * counts[:, None]).T @ means
    return (second - between)[None] / len(x)
  diagonal = shares.T @ second / counts[:, None] - means.square()
  return diagonal if family == 'diag' else diagonal.mean(1, keepdim=True)


def training(images, params, batch_size, learning_rate):
  """Epochs in channels last, which suit a CPU, with the images resident."""
  import torch
  from torch.nn import functional

  images, *flat = _tensors(images, *(a for pair in params for a in pair))
  images = images.permute(0, 3, 1, 2)  # and so in channels last
  scale = 255 if images.dtype == torch.uint8 else 1
  kernels = [
    kernel.permute(3, 2, 0, 1)
    .contiguous(memory_format=torch.channels_last)
    .requires_grad_()
    for kernel in flat[::2]
  ]
  biases = [bias.requires_grad_() for bias in flat[1::2]]
  adam = torch.optim.Adam([*kernels, *biases], lr=learning_rate)
  num_levels = len(params) // 2

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
    for batch in images.split(batch_size):
      pixels = batch.float() / scale
      loss = functional.mse_loss(network(pixels), pixels)
      adam.zero_grad()
      loss.backward()
      adam.step()
      total += loss.detach() * len(batch)
    mean = float(total) / len(images)
    return lambda: mean

  return Task(run)

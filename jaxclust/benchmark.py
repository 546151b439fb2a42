"""This code against its peers: the same arrays and starts, in one run.

The contestants of a row take turns, after a warm-up each, so that what else the
machine does falls on all alike. Beside them stands the time that the plain
algorithm needs at the machine's own speed, of a large matrix product or of a
large copy, measured in the same run.

Axes: N points or images, H height, W width, C channels, D features, K clusters
or components, R restarts.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from jaxclust import gmm, kmeans, layers, numerics, peers, training
from jaxclust.autoencoder import Autoencoder, count_operations, level_sizes
from jaxclust.autoencoder import check_options as check_network
from jaxclust.numerics import InputError
from jaxclust.peers import Task

OURS = 'jaxclust'

# Between contestants, until the threads of the last one are asleep.
_PAUSE = 0.2

# Of a layer in a task.
_CALLS = 20

# Ridge of mixtures, in units of the features' mean variance.
_REG = 1e-6


class MismatchError(RuntimeError):
  """Contestants that did not do the same, so that no time of them counts."""


class Contest(NamedTuple):
  """One row: what the contestants do, and what shows that they did the same."""

  name: str
  tasks: dict[str, Task]
  objective: Callable[[Any], float]  # of what a task returns
  tolerance: float  # relative, of the objectives
  operations: float  # of the plain algorithm, a part of a task
  numbers: float  # that it reads


class Limits(NamedTuple):
  """What the machine can do."""

  operations_per_second: float  # of a float32 matrix product
  bytes_per_second: float  # read and written, of a copy


def check_options(
  image_shape: Sequence[int],
  *,
  groups: Sequence[str],
  rounds: int,
  limit_size: int,
  kmeans: dict,
  mixtures: dict,
  autoencoder: dict,
) -> None:
  """Checks the options of `run` against the shape `[N, H, W, C]` of images.

  Raises:
    InputError: if they do not fit.
  """
  unknown = set(groups) - set(GROUPS)
  if unknown or not groups:
    raise InputError(
      f'groups are {tuple(groups)}: name some of {", ".join(GROUPS)}'
    )
  mixtures = dict(mixtures)
  covariances, dims = mixtures.pop('covariances'), mixtures.pop('dims')
  counts = kmeans | mixtures | {'rounds': rounds, 'limit_size': limit_size}
  counts |= {f'dims[{i}]': dim for i, dim in enumerate(dims)}
  for name, count in counts.items():
    numerics.check_count(name, count)
  num_points, num_features = image_shape[0], math.prod(image_shape[1:])
  largest = max(
    kmeans['num_clusters'], kmeans['many_clusters'], mixtures['num_components']
  )
  if largest > num_points:
    raise InputError(
      f'{largest} clusters are asked for, but there are only {num_points} '
      'images: ask for at most as many'
    )
  if len(covariances) != len(dims) or set(covariances) - set(gmm.FAMILIES):
    raise InputError(
      f'covariances are {tuple(covariances)}: there must be one for each of '
      f'the {len(dims)} dims, of {", ".join(gmm.FAMILIES)}'
    )
  if max(dims, default=1) > num_features:
    raise InputError(
      f'dims reach {max(dims)}, but an image has only {num_features} numbers: '
      'ask for at most as many'
    )
  autoencoder = dict(autoencoder)
  check_network(features=autoencoder.pop('features'))
  numerics.check_count('num_seeds', autoencoder.pop('num_seeds'))
  training.check_options(num_epochs=rounds, **autoencoder)


def num_rows(
  groups: Sequence[str], mixtures: dict, autoencoder: dict, **options: Any
) -> int:
  """Rows that `run` yields with these options, beside the limits."""
  del options
  num_levels = len(autoencoder['features'])
  rows = {
    'kmeans': 3,
    'mixtures': len(mixtures['dims']),
    'autoencoder': 1,
    'layers': 3 * (3 * num_levels + 1) - 1,
  }
  return sum(rows[group] for group in groups)


def run(
  key: jax.Array,
  images: jax.Array,
  *,
  groups: Sequence[str],
  rounds: int,
  limit_size: int,
  kmeans: dict,
  mixtures: dict,
  autoencoder: dict,
) -> Iterator[dict]:
  """Measures row by row.

  Args:
    key: a JAX random key, for the starts.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    groups: of `GROUPS`, which rows to measure.
    rounds: turns of each contestant.
    limit_size: rows of the matrices whose product is timed.
    kmeans: num_clusters and num_restarts of the fit to convergence and of the
      seeding, many_clusters and many_steps of the fit of one start.
    mixtures: num_components, covariances (a family for each mixture), dims (its
      D, of the principal components of the pixels) and em_steps of a task.
    autoencoder: features, batch_size, learning_rate, dtype and num_seeds, how
      many networks train side by side.

  Yields:
    First the limits of the machine, as `Limits._asdict`, then a record for each
    row: name, seconds of every turn by contestant, medians, ratios of a peer's
    seconds to ours (median, least and largest of the rounds), objectives, the
    limit in seconds, and what share of our time it is.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  options = {
    'kmeans': kmeans,
    'mixtures': mixtures,
    'autoencoder': autoencoder,
    'layers': autoencoder,
  }
  limits = measure_limits(limit_size)
  yield limits._asdict()
  for group in groups:
    for contest in GROUPS[group](key, images, **options[group]):
      yield measure(contest, rounds, limits)


def measure_limits(size: int) -> Limits:
  """Times products of matrices `[size, size]`, and copies of 8 such."""
  matrix = jnp.ones((size, size), jnp.float32) / size
  block = jnp.ones((8, size, size), jnp.float32)

  def least(fn, argument):
    call = jax.jit(fn)
    seconds = []
    for _ in range(10):
      begin = time.perf_counter()
      jax.block_until_ready(call(argument))
      seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])

  product = least(lambda a: numerics.dot(a, a), matrix)
  copy = least(lambda a: -a, block)
  return Limits(2 * size**3 / product, 2 * block.nbytes / copy)


def measure(contest: Contest, rounds: int, limits: Limits) -> dict:
  """Lets the contestants take turns; a record as for `run`.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  objectives = {}
  for name, task in contest.tasks.items():  # the warm-up
    objectives[name] = contest.objective(task.run())
    gap = abs(objectives[name] - objectives[OURS])
    if not gap <= contest.tolerance * abs(objectives[OURS]):
      raise MismatchError(
        f'{contest.name}: {name} ended at {objectives[name]:.8g}, '
        f'{OURS} at {objectives[OURS]:.8g}: they did not do the same'
      )
  seconds = {name: [] for name in contest.tasks}
  for _ in range(rounds):
    for name, task in contest.tasks.items():
      time.sleep(_PAUSE)
      begin = time.perf_counter()
      task.run()
      elapsed = time.perf_counter() - begin
      seconds[name].append(elapsed / task.num_parts)
  median = {name: float(np.median(s)) for name, s in seconds.items()}
  limit = max(
    contest.operations / limits.operations_per_second,
    4 * contest.numbers / limits.bytes_per_second,
  )
  return {
    'name': contest.name,
    'seconds': seconds,
    'median': median,
    'ratio': {
      name: _ratio(seconds[name], seconds[OURS])
      for name in seconds
      if name != OURS
    },
    'objective': objectives,
    'limit': limit,
    'share_of_limit': limit / median[OURS],
  }


def _ratio(theirs, ours):
  rounds = np.divide(theirs, ours)
  return {
    'median': float(np.median(theirs) / np.median(ours)),
    'least': float(rounds.min()),
    'largest': float(rounds.max()),
  }


def _kmeans_contests(
  key, images, num_clusters, num_restarts, many_clusters, many_steps
):
  x = training.as_points(images)
  shape = f'{len(x):,} x {x.shape[1]}'

  def seed():
    options = {'num_clusters': num_clusters, 'num_restarts': num_restarts}
    state = kmeans.start(key, x, **options)
    return jax.block_until_ready(state.frame.leave(state.centers))

  num_trials = 2 + int(math.log(num_clusters))
  passes = num_restarts * num_clusters * (1 + num_trials)
  yield _contest(
    f'seeding, {shape}, k = {num_clusters}, {num_restarts} starts',
    'seeding',
    seed,
    (x, num_clusters, num_restarts),
    objective=functools.partial(_inertia, x),
    tolerance=0.2,  # draws differ
    operations=2 * x.size * passes,
    numbers=2 * x.size * num_clusters,
  )
  yield _lloyd(
    f'k-means, {shape}, k = {num_clusters}, {num_restarts} starts',
    x,
    np.asarray(seed()),
    max_steps=300,
    tol=1e-4,
  )
  one = kmeans.start(key, x, num_clusters=many_clusters, num_restarts=1)
  yield _lloyd(
    f'k-means, {shape}, k = {many_clusters}, {many_steps} steps',
    x,
    np.asarray(one.frame.leave(one.centers)),
    max_steps=many_steps,
    tol=0.0,
  )


def _lloyd(name, x, starts, max_steps, tol):
  """A contest of fits of k-means from starts `[R, K, D]`."""
  num_clusters = starts.shape[1]

  def fit():
    state = kmeans.start(
      jax.random.key(0), x, num_clusters=num_clusters, init=starts
    )
    state, _ = kmeans.run(state, x, max_steps=max_steps, tol=tol)
    return state

  def run():
    state = fit()
    return np.asarray(state.frame.leave(state.centers))

  num_steps = np.asarray(fit().num_steps)
  passes = int(num_steps.sum())
  return _contest(
    name,
    'kmeans',
    run,
    (x, starts, max_steps, tol, num_steps),
    objective=functools.partial(_inertia, x),
    tolerance=1e-3,
    operations=2 * x.size * num_clusters * passes,
    numbers=x.size * passes,
  )


def _em_contests(key, images, num_components, covariances, dims, em_steps):
  x = training.as_points(images)
  for covariance, dim in zip(covariances, dims, strict=True):
    yield _em_contest(key, x, num_components, covariance, dim, em_steps)


def _em_contest(key, x, num_components, covariance, dim, num_steps):
  """A contest of steps of EM on principal components of x."""
  x = jnp.asarray(_principal_components(x, dim))
  state = gmm.start(
    key,
    x,
    num_components=num_components,
    covariance=covariance,
    init='random',
    reg=_REG,
  )
  params = gmm.best(state).params

  def run():
    moved, _ = gmm.run(state, x, num_steps, tol=-1.0, reg=_REG)
    jax.block_until_ready(moved)
    return lambda: float(gmm.best(moved).log_likelihood)

  terms = dim if covariance == 'full' else 2 if covariance == 'diag' else 1
  return _contest(
    f'EM, {covariance}, {len(x):,} x {dim}, k = {num_components}, a step',
    'em',
    run,
    (x, params, _REG * float(state.frame.scale) ** 2, num_steps),
    objective=lambda likelihood: likelihood(),
    tolerance=1e-3,
    operations=4 * x.size * num_components * terms,
    numbers=x.size,
    num_parts=num_steps,
  )


def _training_contests(
  key, images, features, batch_size, learning_rate, dtype, num_seeds
):
  """Epochs of networks side by side, each from parameters and in an order of
  its own; the peers train the first alone, always in the order of its first
  epoch."""
  model = Autoencoder(images.shape[1:], tuple(features))
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
    jnp.arange(num_seeds)
  )
  state = training.init(keys, model)
  num_images = len(images)
  rows = jnp.arange(num_images, dtype=jnp.int32)
  order = np.asarray(training.draw_order(keys, 0, rows, batch_size))[0]
  params = [
    (np.asarray(layer['kernel'])[0], np.asarray(layer['bias'])[0])
    for layer in model.convolutions(state.params)
  ]
  rates = np.full(order.shape[0], learning_rate, np.float32)
  mesh = training.make_mesh(model, batch_size)
  state, resident = training.replicate(mesh, (state, images))
  epoch = 0

  def run():
    nonlocal state, epoch
    state = training.train_steps(
      training.start_epoch(state),
      resident,
      keys,
      training.draw_order(keys, epoch, rows, batch_size),
      rates,
      model=model.clone(dtype=training.DTYPES[dtype]),
      mesh=mesh,
    )
    epoch += 1
    return float(state.loss_sum[0]) / num_images

  given = peers.Training(
    np.asarray(images)[order[order >= 0]],
    params,
    len(features),
    batch_size,
    learning_rate,
  )
  together = f', {num_seeds} side by side, each' if num_seeds > 1 else ''
  yield _contest(
    f'autoencoder, {num_images:,} images, batches of {batch_size}, {dtype}, '
    f'an epoch{together}',
    'training',
    run,
    (given,),
    num_parts=num_seeds,
    objective=float,
    tolerance=1e-3 if dtype == 'float32' else 2e-2,
    operations=3 * count_operations(model) * num_images,
    numbers=images.size / 4,
  )


class _Layer(NamedTuple):
  """A layer of the network, and what it is given."""

  name: str
  function: Callable  # arguments -> output
  shapes: dict[str, tuple[int, ...]]  # of its arguments
  operations: float  # of its plain form
  is_first: bool = False  # whose input are the images


def _layers(model, batch_size) -> Iterator[_Layer]:
  """The layers of the network, from the images to the images."""
  sizes = level_sizes(model.image_shape, len(model.features))
  channels = [model.image_shape[-1], *model.features]
  for i, (size, pair) in enumerate(
    zip(sizes, itertools.pairwise(channels), strict=False)
  ):
    layer = _convolution(f'encoder {i}', batch_size, size, size, *pair)
    yield layer._replace(is_first=i == 0)
    yield _Layer(
      f'encoder {i}, relu and pool {_by(size)} x {pair[1]}',
      layers.relu_pool,
      {'input': (batch_size, *size, pair[1]), 'bias': pair[1:]},
      0,
    )
  channels = [channels[-1], *reversed(channels[1:]), channels[0]]
  sizes = [sizes[-1], *reversed(sizes)]
  for i, (pair, size) in enumerate(
    zip(itertools.pairwise(channels), itertools.pairwise(sizes), strict=True)
  ):
    yield _convolution(f'decoder {i}', batch_size, *size, *pair)


def _convolution(name, batch_size, size, size_out, channels_in, channels_out):
  def function(x, kernel):
    if size == size_out:
      return layers.conv(x, kernel)
    return layers.upsample_conv(x, kernel, size_out)

  return _Layer(
    f'{name}, {_by(size)} x {channels_in} to {_by(size_out)} x {channels_out}',
    function,
    {
      'input': (batch_size, *size, channels_in),
      'kernel': (3, 3, channels_in, channels_out),
    },
    18 * batch_size * math.prod(size_out) * channels_in * channels_out,
  )


def _by(size):
  return ' x '.join(map(str, size))


def _layer_contests(key, images, features, batch_size, **options):
  """Where an epoch's time goes: each layer alone, forward and backward."""
  del options
  model = Autoencoder(images.shape[1:], tuple(features))
  for layer in _layers(model, batch_size):
    arguments = [
      jax.random.normal(jax.random.fold_in(key, i), shape)
      for i, shape in enumerate(layer.shapes.values())
    ]
    output = jax.eval_shape(layer.function, *arguments)
    grad = jax.random.normal(key, output.shape)
    yield _layer_contest(layer, 'forward', layer.function, arguments)
    for i, name in enumerate(layer.shapes):
      if layer.is_first and name == 'input':
        continue  # images take no gradient
      yield _layer_contest(
        layer,
        f'gradient of its {name}',
        functools.partial(_gradient, layer.function, i),
        [grad, *arguments],
      )


def _gradient(function, place, grad, *arguments):
  return jax.vjp(function, *arguments)[1](grad)[place]


def _layer_contest(layer, part, function, arguments):
  compiled = jax.jit(function)

  def run():
    for _ in range(_CALLS):
      result = compiled(*arguments)
    jax.block_until_ready(result)

  like = jax.eval_shape(function, *arguments)
  return Contest(
    f'{layer.name}, {part}',
    {OURS: Task(run, _CALLS)},
    objective=lambda result: 0.0,
    tolerance=0.0,
    operations=layer.operations,
    numbers=like.size + sum(a.size for a in arguments),
  )


GROUPS = {
  'kmeans': _kmeans_contests,
  'mixtures': _em_contests,
  'autoencoder': _training_contests,
  'layers': _layer_contests,
}


def _contest(
  name, kind, ours, arguments, *, num_parts=1, objective, **others
) -> Contest:
  """A contest with all peers that know the kind of task."""
  tasks = {OURS: Task(ours, num_parts)}
  arguments = [
    np.asarray(a) if isinstance(a, jax.Array) else a for a in arguments
  ]
  for peer, kinds in peers.installed().items():
    if kind in kinds:
      tasks[peer] = kinds[kind](*arguments)
  return Contest(name, tasks, objective, **others)


def _inertia(x, centers):
  """The mean inertia of centers `[R, K, D]`."""
  return float(np.mean([-kmeans.score(c, x) for c in centers]))


def _principal_components(x, dim):
  pca = PCA(dim, svd_solver='covariance_eigh')
  return pca.fit_transform(np.asarray(x)).astype(np.float32)

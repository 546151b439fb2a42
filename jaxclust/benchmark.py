"""This code against its peers: the same arrays and starts, in one run.

The contestants of a row take turns, after a warm-up each, so that what else the
machine does falls on all alike. Beside them stands the time that the plain
algorithm needs at the machine's own speed, of a large matrix product or of a
large copy, measured in the same run.

Axes: N points, D features, K clusters or components, R restarts.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from jaxclust import gmm, kmeans, numerics, peers
from jaxclust.numerics import InputError
from jaxclust.peers import Task

OURS = 'jaxclust'

# Between contestants, until the threads of the last one are asleep.
_PAUSE = 0.2

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
  num_points: int,
  num_features: int,
  *,
  num_clusters: int,
  num_restarts: int,
  many_clusters: int,
  many_steps: int,
  num_components: int,
  covariances: Sequence[str],
  dims: Sequence[int],
  em_steps: int,
  rounds: int,
  limit_size: int,
) -> None:
  """Checks the options of `run` against the shape of x.

  Raises:
    InputError: if they do not fit.
  """
  for name, count in {
    'num_clusters': num_clusters,
    'num_restarts': num_restarts,
    'many_clusters': many_clusters,
    'many_steps': many_steps,
    'num_components': num_components,
    'em_steps': em_steps,
    'rounds': rounds,
    'limit_size': limit_size,
    **{f'dims[{i}]': dim for i, dim in enumerate(dims)},
  }.items():
    numerics.check_count(name, count)
  largest = max(num_clusters, many_clusters, num_components)
  if largest > num_points:
    raise InputError(
      f'{largest} clusters are asked for, but x has only {num_points} rows: '
      'ask for at most as many'
    )
  if len(covariances) != len(dims) or set(covariances) - set(gmm.FAMILIES):
    raise InputError(
      f'covariances are {tuple(covariances)}: there must be one for each of '
      f'the {len(dims)} dims, of {", ".join(gmm.FAMILIES)}'
    )
  if max(dims, default=1) > num_features:
    raise InputError(
      f'dims reach {max(dims)}, but x has only {num_features} features: '
      'ask for at most as many'
    )


def num_rows(covariances: Sequence[str], **options: Any) -> int:
  """Rows that `run` yields with these options, beside the limits."""
  del options
  return 3 + len(covariances)


def run(
  key: jax.Array,
  x: jax.Array,
  *,
  num_clusters: int,
  num_restarts: int,
  many_clusters: int,
  many_steps: int,
  num_components: int,
  covariances: Sequence[str],
  dims: Sequence[int],
  em_steps: int,
  rounds: int,
  limit_size: int,
) -> Iterator[dict]:
  """Measures row by row.

  Args:
    key: a JAX random key, for the starts.
    x: `[N, D]` float32 points.
    num_clusters: K of the fit to convergence and of the seeding.
    num_restarts: R of these.
    many_clusters: K of the fit of one start.
    many_steps: its steps.
    num_components: K of the mixtures.
    covariances: a family for each mixture.
    dims: D for each mixture, of the principal components of x.
    em_steps: steps of EM in a task.
    rounds: turns of each contestant.
    limit_size: rows of the matrices whose product is timed.

  Yields:
    First the limits of the machine, as `Limits._asdict`, then a record for each
    row: name, seconds of every turn by contestant, medians, ratios of a peer's
    seconds to ours (median, least and largest of the rounds), objectives, the
    limit in seconds, and what share of our time it is.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  limits = measure_limits(limit_size)
  yield limits._asdict()
  contests = _kmeans_contests(
    key, x, num_clusters, num_restarts, many_clusters, many_steps
  )
  for contest in contests:
    yield measure(contest, rounds, limits)
  for covariance, dim in zip(covariances, dims, strict=True):
    contest = _em_contest(key, x, num_components, covariance, dim, em_steps)
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
  key, x, num_clusters, num_restarts, many_clusters, many_steps
):
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

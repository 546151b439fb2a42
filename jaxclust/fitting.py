"""Fits as loops on the host around bounded device calls.

Progress, log and checkpoints have their place between two calls; a fit takes up
what an earlier process of the same run has saved.

Axes: R runs (one for each seed), N images or points, S steps, B batch,
D features, K clusters.
"""

import functools
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import (
  autoencoder,
  checkpoints,
  gmm,
  kmeans,
  signals,
  streaming,
  training,
  workdir,
)
from jaxclust.autoencoder import Autoencoder
from jaxclust.data import augment
from jaxclust.errors import RunError
from jaxclust.numerics import InputError, StopReason
from jaxclust.report import console
from jaxclust.training import AUGMENTATION, INIT, ORDER, Best, TrainState

# What a seed draws beside what a training does, in the same way.
CLUSTERS = 2

_SECONDS_BETWEEN_CHECKPOINTS = 10

# Operations of a device call that last about a second.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 1e11, 1e13

# Of a clusterer in a call, for there must be something to see.
_MOST_STEPS = 100

# Of images that a device call is sent.
_CALL_BYTES = 2**28


_split = jax.jit(jnp.split, static_argnums=(1, 2))


class Clusterer(NamedTuple):
  """What there is to know of an algorithm."""

  module: types.ModuleType  # start, run, best, warn and the checks of options
  groups: str  # the option that holds K
  score: str  # the field of a result that tells how well it fits
  operations: Callable  # (N, D, K) -> of one step
  clusters: Callable  # result -> centers [K, D] or GMMParams, as follows
  predict: Callable  # (clusters, x [N, D]) -> labels [N]
  centers: Callable  # clusters -> [K, D]
  # (clusters, x [N, D], distances [N, K] from the centers)
  judge: Callable  # -> confidence [N], outlier score [N]


def _judge_by_distance(centers, x, distances):
  """Confidence is 1 - a / b for the distances a and b from the nearest and the
  second nearest center: 1 at a center, 0 halfway between two. An outlier is far
  from its center."""
  del x
  nearest = distances.min(axis=1)
  if len(centers) == 1:
    return np.ones_like(nearest), nearest
  second = np.partition(distances, 1, axis=1)[:, 1]
  ratio = np.ones_like(nearest)  # between two centers that are one
  np.divide(nearest, second, out=ratio, where=second > 0)
  return 1 - ratio, nearest


def _judge_by_density(params, x, distances):
  """Confidence is the largest responsibility. An outlier is improbable."""
  del distances
  shares = np.asarray(gmm.responsibilities(params, x))
  return shares.max(axis=1), np.asarray(gmm.outlier_score(params, x))


CLUSTERERS = {
  'kmeans': Clusterer(
    module=kmeans,
    groups='num_clusters',
    score='inertia',
    operations=lambda n, d, k: 0.4 * n * d * k,  # bounds spare the rest
    clusters=lambda result: result.centers,
    predict=kmeans.predict,
    centers=lambda centers: centers,
    judge=_judge_by_distance,
  ),
  'gmm': Clusterer(
    module=gmm,
    groups='num_components',
    score='log_likelihood',
    operations=lambda n, d, k: 4 * n * d * d * k,
    clusters=lambda result: result.params,
    predict=gmm.predict,
    centers=lambda params: params.means,
    judge=_judge_by_density,
  ),
}


def draw_keys(seeds: Sequence[int], purpose: int) -> jax.Array:
  """A key for each seed `[R]`, of what it draws for one purpose."""
  return jnp.stack(
    [jax.random.fold_in(jax.random.key(seed), purpose) for seed in seeds]
  )


def cluster(
  path: pathlib.Path, name: str, seed: int, x: jax.Array, options: dict
) -> tuple[Any, Any]:
  """Steps all restarts until they stop.

  Args:
    path: the run directory.
    name: of `CLUSTERERS`.
    seed: of the draws.
    x: `[N, D]` points.
    options: of the clusterer's `fit`.

  Returns:
    The best restart's result, and the state of them all.
  """
  clusterer = CLUSTERERS[name]
  module = clusterer.module
  run_options, start_options = split_options(options)
  key = draw_keys([seed], CLUSTERS)[0]

  def start(key, x):
    return module.start(key, x, **start_options)

  phase = f'{name}-{seed}'
  restored = checkpoints.restore(path, phase, jax.eval_shape(start, key, x))
  begun, state = restored or (0, start(key, x))
  workdir.rewind_log(path, 'step', begun, phase=name, seed=seed)
  num_runs = len(state.num_steps)
  operations = clusterer.operations(*x.shape, options[clusterer.groups])
  num_steps = min(_MOST_STEPS, _steps_per_call(num_runs * operations))
  step = begun
  with (
    _Saver(path, phase, begun) as saver,
    console.progress(name, options['max_steps']) as show,
  ):
    while (state.stop_reason == StopReason.RUNNING).any():
      state, scores = module.run(state, x, num_steps, **run_options)
      last, step = step, int(state.num_steps.max())
      best = getattr(module.best(state), clusterer.score)
      score = {clusterer.score: float(best)}
      scores = module.in_units(state, scores[: step - last])
      record = score | {'restarts': _rounded(scores)}
      workdir.log(path, phase=name, seed=seed, step=step, **record)
      saver.save(step, state)
      running = int((state.stop_reason == StopReason.RUNNING).sum())
      show(step, f'{_text(score)}  {running} running')
    saver.save(step, state, final=True)
  result = module.best(state)
  module.warn(result)
  return result, state


def labelings(name: str, state: Any, x: jax.Array) -> Iterator[np.ndarray]:
  """The labels `[N]` of the points by each restart of a state of `cluster`."""
  clusterer = CLUSTERERS[name]
  runs = {k: v for k, v in state._asdict().items() if k != 'frame'}
  for run in range(len(state.num_steps)):
    alone = jax.tree.map(lambda a: a[run : run + 1], runs)  # noqa: B023
    result = clusterer.module.best(state._replace(**alone))
    yield np.asarray(clusterer.predict(clusterer.clusters(result), x))


def _rounded(scores):
  """Scores `[S, R]` as lists of numbers that are not longer than they need to
  be; None for one that is not finite, which JSON does not have."""
  return [
    [float(f'{v:.6g}') if np.isfinite(v) else None for v in row]
    for row in np.asarray(scores).tolist()
  ]


def split_options(options: dict) -> tuple[dict, dict]:
  """Options of a clusterer's `run`, and those of its `start`."""
  ends = {k: options[k] for k in ('max_steps', 'tol') if k in options}
  start = {k: v for k, v in options.items() if k not in ends}
  ridge = {'reg': options['reg']} if 'reg' in options else {}
  return ends | ridge, start


class Trained(NamedTuple):
  """Networks as a training has left them."""

  params: Any  # [R, ...]
  records: list[dict]  # what was logged of the epoch they are from, R of them


class _Course(NamedTuple):
  """A training under way, as it is saved."""

  state: TrainState
  best: Best


class _Plan(NamedTuple):
  """What all epochs of a training have in common."""

  images: jax.Array | np.ndarray  # [N, H, W, C]
  rows: jax.Array  # of the images to train on
  judges: jax.Array | np.ndarray | None  # images of the validation loss
  orders: jax.Array  # [R] keys
  rates: np.ndarray  # [S] learning rates of all steps
  mesh: jax.sharding.Mesh  # the devices that share each batch
  num_steps: int  # of an epoch
  num_steps_per_call: int
  batch_size: int
  num_epochs: int
  patience: int  # epochs without a new best; 0 for no end of it
  make_steps: Callable  # (state, images, rows, rates) -> state
  sum_losses: Callable  # (params, images) -> [R]


def check_training(
  num_images: int,
  *,
  noise: float,
  max_shift: float,
  max_rotation: float,
  placement: str,
  **options: Any,
) -> None:
  """Checks the options of `train` for N images.

  Raises:
    InputError: if they are out of range.
  """
  training.check_options(**options)
  held = training.held_out(num_images, options['holdout'])
  if options['patience'] and not held.any():
    raise InputError(
      f'holdout is {options["holdout"]}: of {num_images} images that is none '
      'to validate on; hold out more, or set patience to 0'
    )
  streaming.check_placement(placement)
  augment.from_options(
    noise=noise, max_shift=max_shift, max_rotation=max_rotation
  )


def train(
  path: pathlib.Path,
  model: Autoencoder,
  images: jax.Array | np.ndarray,
  test_images: jax.Array | np.ndarray | None,
  seeds: Sequence[int],
  options: dict,
) -> Trained:
  """Trains a network for each of R seeds, side by side.

  Args:
    path: the run directory.
    model: the network.
    images: `[N, H, W, C]` on the device, or on the host to be streamed.
    test_images: of the validation loss, unless a part of images is held out.
    seeds: of the draws.
    options: as `check_training` takes them.

  Returns:
    The parameters after the last epoch, or the best ones if there is patience.

  Raises:
    RunError: if a loss or a parameter is no longer finite.
  """
  plan = _plan(model, images, test_images, seeds, options)
  state = training.init(draw_keys(seeds, INIT), model)
  course = _Course(state, training.no_best(state.params))
  restored = checkpoints.restore(path, 'autoencoder', course)
  begun, course = restored or (0, course)
  course = training.replicate(plan.mesh, course)
  epoch = begun // plan.num_steps
  workdir.rewind_log(path, 'epoch', epoch, phase='autoencoder')
  with (
    _Saver(path, 'autoencoder', begun) as saver,
    console.progress('autoencoder', plan.num_epochs) as show,
  ):
    while (active := _active(course.best, epoch, plan)).any():
      epoch += 1
      start = time.perf_counter()
      state = _train_epoch(course, epoch, plan, saver)
      seconds = round(time.perf_counter() - start, 3)
      losses = _losses(state, plan)
      _check_finite(state, losses, active, epoch, saver.last)
      judged = losses['val_loss' if plan.patience else 'train_loss']
      best = training.keep_best(
        course.best, state.params, judged, epoch, plan.patience or epoch
      )
      course = _Course(state, best)
      for run in np.flatnonzero(active):
        record = {name: float(values[run]) for name, values in losses.items()}
        record = {'seed': seeds[run], 'epoch': epoch, **record}
        workdir.log(path, phase='autoencoder', **record, seconds=seconds)
      saver.save(epoch * plan.num_steps, course)
      means = {name: values[active].mean() for name, values in losses.items()}
      show(epoch, _text(means | {'seconds': seconds}))
    saver.save(epoch * plan.num_steps, course, final=True)
  return _trained(path, course, seeds, plan)


def _plan(model, images, test_images, seeds, options):
  """What `train` does with these arguments."""
  batch_size, patience = options['batch_size'], options['patience']
  held = training.held_out(len(images), options['holdout'] if patience else 0)
  rows = jnp.asarray(np.flatnonzero(~held).astype(np.int32))
  num_steps = training.steps_per_epoch(len(rows), batch_size)
  images_per_step = len(seeds) * batch_size
  mesh = training.make_mesh(model, batch_size)
  schedule = ('learning_rate', 'schedule', 'warmup_epochs')
  motion = ('noise', 'max_shift', 'max_rotation')
  judges = images[np.flatnonzero(held)] if patience else test_images
  if isinstance(images, jax.Array):
    images = training.replicate(mesh, images)
  drawn = {
    'keys': draw_keys(seeds, AUGMENTATION),
    'clip_norm': np.float32(options['clip_norm']),
    'augmentation': jax.tree.map(
      np.float32,
      augment.from_options(**{name: options[name] for name in motion}),
    ),
  }
  return _Plan(
    images=images,
    rows=rows,
    judges=judges,
    orders=draw_keys(seeds, ORDER),
    rates=training.learning_rates(
      options['num_epochs'] * num_steps,
      num_steps,
      **{name: options[name] for name in schedule},
    ),
    mesh=mesh,
    num_steps=num_steps,
    num_steps_per_call=_divide(
      num_steps,
      min(
        _steps_per_call(
          3 * images_per_step * autoencoder.count_operations(model)
        ),
        max(1, _CALL_BYTES // (images_per_step * images[0].nbytes)),
      ),
    ),
    batch_size=batch_size,
    num_epochs=options['num_epochs'],
    patience=patience,
    make_steps=functools.partial(
      training.train_steps,
      mesh=mesh,
      model=model.clone(dtype=training.DTYPES[options['dtype']]),
      **training.replicate(mesh, drawn),
    ),
    sum_losses=functools.partial(
      training.sum_losses, model=model, batch_size=batch_size
    ),
  )


def _active(best, epoch, plan):
  """Which runs `[R]` make another epoch."""
  gap = epoch - jax.device_get(best.epoch)
  if epoch >= plan.num_epochs:
    return np.zeros(gap.shape, bool)
  return gap < plan.patience if plan.patience else np.ones(gap.shape, bool)


def _train_epoch(course, epoch, plan, saver):
  """The state after an epoch, or after what is left of it, or as soon as a run
  that counts is not finite."""
  state = course.state
  step = _step(state)
  begun = step % plan.num_steps
  if not begun:
    state = training.start_epoch(state)
  put = functools.partial(training.replicate, plan.mesh)
  order = training.draw_order(
    plan.orders, jax.device_put(np.int32(epoch - 1)), plan.rows, plan.batch_size
  )
  cuts = range(begun, plan.num_steps, plan.num_steps_per_call)
  parts = _split(order, tuple(cuts), 1)[1:]
  for images, rows in streaming.batches(plan.images, parts, put):
    rates = put(plan.rates[step : step + rows.shape[1]])
    state = plan.make_steps(state, images, rows=rows, learning_rates=rates)
    step = _step(state)
    finite = _is_finite(state) | ~_active(course.best, epoch - 1, plan)
    if not finite.all():
      break
    if step < epoch * plan.num_steps:
      saver.save(step, course._replace(state=state))
  return state


def _step(state):
  """How many steps all runs have made."""
  return int(jax.device_get(state.step)[0])


def _is_finite(state):
  """Whether parameters and losses of each run are finite, `[R]`."""
  return jax.device_get(training.is_finite((state.params, state.loss_sum)))


def _losses(state, plan):
  """Mean losses `[R]` of the epoch and of what validates it."""
  losses = {'train_loss': jax.device_get(state.loss_sum) / len(plan.rows)}
  if plan.judges is not None:
    params = jax.device_put(state.params, plan.mesh.devices[0])
    sums = [
      jax.device_get(plan.sum_losses(params, images))
      for images in streaming.blocks(plan.judges)
    ]
    losses['val_loss'] = np.sum(sums, axis=0) / len(plan.judges)
  return losses


def _check_finite(state, losses, active, epoch, saved):
  finite = _is_finite(state) & np.isfinite([*losses.values()]).all(axis=0)
  bad = np.flatnonzero(active & ~finite)
  if bad.size:
    found = {name: float(loss[bad[0]]) for name, loss in losses.items()}
    kept = f'the checkpoint of step {saved} stands' if saved else 'none saved'
    raise RunError(
      f'the losses are {found} at epoch {epoch}: lower '
      f'config.training.learning_rate ({kept})'
    )


def _trained(path, course, seeds, plan):
  """The parameters to be used, and the records of their epochs."""
  last = course.state.step // plan.num_steps
  epochs = course.best.epoch if plan.patience else last
  records = [
    next(
      (
        record
        for record in workdir.read_log(path, phase='autoencoder', seed=seed)
        if record['epoch'] == epoch
      ),
      {'epoch': epoch},  # the log is a file, which someone may have lost
    )
    for seed, epoch in zip(seeds, np.asarray(epochs).tolist(), strict=True)
  ]
  params = (course.best if plan.patience else course.state).params
  return Trained(jax.device_put(params, plan.mesh.devices[0]), records)


class Encoder(NamedTuple):
  """A trained network, whose codes are divided by a scale."""

  model: Autoencoder
  params: Any
  scale: jax.Array  # [1, D]
  batch_size: int

  def encode(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Points `[N, D]` of images `[N, H, W, C]`, wherever these are."""
    return self._map(training.encode, images) / self.scale

  def errors(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Mean squared errors `[N]` of the reconstructions of images."""
    return self._map(training.errors, images)

  def decode(self, points: jax.Array) -> jax.Array:
    """Images `[N, H, W, C]` of points `[N, D]`."""
    options = {'model': self.model, 'batch_size': self.batch_size}
    return training.decode(self.params, points * self.scale, **options)

  def reconstruct(self, images: jax.Array | np.ndarray) -> jax.Array:
    """What the network makes of images `[N, H, W, C]`."""
    return self.decode(self.encode(images))

  def _map(self, fn, images):
    options = {'model': self.model, 'batch_size': self.batch_size}
    parts = [fn(self.params, i, **options) for i in streaming.blocks(images)]
    return jnp.concatenate(parts)


class _Saver:
  """Saves checkpoints of a phase, but not more often than it is worth.

  Within its context signals wait until the state that they end has been saved.
  """

  def __init__(self, path, phase, begun):
    self.path, self.phase = path, phase
    self.last = begun
    self._time = time.monotonic()
    self._postponed = signals.postponed()

  def __enter__(self):
    self._postponed.__enter__()
    return self

  def __exit__(self, *error):
    return self._postponed.__exit__(*error)

  def save(self, step, state, final=False):
    """Saves if the last time was long ago, or if there may be no other."""
    due = time.monotonic() - self._time > _SECONDS_BETWEEN_CHECKPOINTS
    stop = signals.is_requested()  # asked once: what comes later waits
    if (due or final or stop) and step != self.last:
      with signals.saving():
        checkpoints.save(self.path, self.phase, step, state)
      self.last, self._time = step, time.monotonic()
    if stop:
      signals.check()


def _steps_per_call(operations):
  """Steps of so many operations that take about a second."""
  on_cpu = jax.default_backend() == 'cpu'
  budget = _CPU_OPERATIONS if on_cpu else _ACCELERATOR_OPERATIONS
  return max(1, int(budget // operations))


def _divide(num_steps, most):
  """Steps of a call, of which all calls of an epoch make the same if they can,
  as another number of steps is another program."""
  least = -(-num_steps // most)
  calls = next(
    (n for n in range(least, 2 * least) if num_steps % n == 0), least
  )
  return -(-num_steps // calls)


def _text(values):
  return '  '.join(f'{name} {value:.5g}' for name, value in values.items())

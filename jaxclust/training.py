"""One loop that trains the networks of every method.

Several runs train side by side, each from a key of its own, as results are
reported over seeds: one after another on a CPU, at once elsewhere. The images
stay as they are (uint8 or float). What an epoch draws comes from
`fold_in(key, epoch)`, what a step draws from the step: a training that is taken
up at any step draws as if it had never stopped.

Axes: R runs, N images, S steps, B batch, H height, W width, C channels,
D numbers of an embedding.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclust import encoding, processes, steps
from jaxclust.data import batches
from jaxclust.errors import RunError
from jaxclust.plans import FINISH, INIT, START, Plan, fold_in, validates
from jaxclust.processes import here, replicate
from jaxclust.steps import TrainState

# Maximum number of images that a method is finished with.
_SAMPLE = 4096


class Best(NamedTuple):
  """The parameters with the lowest loss so far."""

  params: Any  # [R, ...]
  loss: jax.Array  # [R]
  epoch: jax.Array  # [R] int32, after which these were the parameters


class Course(NamedTuple):
  """A training under way, as it is saved."""

  state: TrainState
  best: Best
  targets: Any  # [R, N, ...] of this epoch, or ()


class Progress(NamedTuple):
  """Where a training is after a device call."""

  course: Course
  step: int  # of all runs, over all epochs
  epoch: int  # the one under way, from 1
  losses: dict | None  # of the epoch by name, [R]; None within an epoch
  active: np.ndarray  # [R] bool, runs that made this epoch
  seconds: float  # of the epoch so far


def blank(plan: Plan, previous: Any = None) -> Course:
  """A course of the right shapes, with networks but without clusters in them.

  Args:
    plan: of the training.
    previous: parameters `[R, ...]` of the stage before, if there was one.
  """
  keys = fold_in(plan.keys, INIT)
  optimizer = plan.options['optimizer']
  return _blank(plan.method, optimizer, len(plan.source), keys, previous)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _blank(method, optimizer, num_images, keys, previous):
  params, targets = jax.vmap(method.init)(keys, previous), ()
  if method.targets is not None:
    shape = num_images, method.code_size
    embeddings = jax.ShapeDtypeStruct(shape, jnp.float32)
    like = jax.eval_shape(method.targets, _runs(params)[0], embeddings, None)
    targets = jax.tree.map(
      lambda a: jnp.zeros((len(keys), *a.shape), a.dtype), like
    )
  return Course(_first_state(params, optimizer), no_best(params), targets)


def start(plan: Plan, course: Course) -> Course:
  """A blank course, with clusters where the method begins with some."""
  if plan.method.start is None:
    return course
  runs, own_runs = [], _runs(course.state.params)
  for key, own in zip(fold_in(plan.keys, START), own_runs, strict=True):
    runs.append(plan.method.start(key, own, _embeddings(plan, own)))
  params = processes.same(_stack(runs))
  state = _first_state(params, plan.options['optimizer'])
  return course._replace(state=state, best=no_best(params))


@functools.partial(jax.jit, static_argnums=1)
def _first_state(params, optimizer):
  opt_state = jax.vmap(steps.optimizer_of(optimizer).init)(params)
  zeros = jnp.zeros(len(jax.tree.leaves(params)[0]))
  return TrainState(params, opt_state, zeros.astype(jnp.int32), zeros)


def run(plan: Plan, course: Course) -> Iterator[Progress]:
  """Trains to the end, from where a course stands.

  Args:
    plan: of the training.
    course: from `start`, or saved of an earlier process; given up.

  Yields:
    Where the training is, after each device call and each epoch.

  Raises:
    RunError: if a loss or a parameter is no longer finite.
  """
  course = replicate(plan.mesh, course)
  step = _step(course.state)
  epoch = step // plan.steps_per_epoch
  while (active := _active(course.best, epoch, plan)).any():
    epoch += 1
    begun = time.perf_counter()
    for latest in _train_epoch(course, plan):
      course = latest
      step = _step(course.state)
      if not (_is_finite(course.state) | ~active).all():
        break
      if step < epoch * plan.steps_per_epoch:
        seconds = round(time.perf_counter() - begun, 3)
        yield Progress(course, step, epoch, None, active, seconds)
    losses = _losses(course.state, plan)
    _check_finite(course.state, losses, active, epoch, plan)
    judged = losses['val_loss' if plan.options['patience'] else 'train_loss']
    patience = plan.options['patience'] or epoch
    best = keep_best(course.best, course.state.params, judged, epoch, patience)
    course = course._replace(best=best)
    seconds = round(time.perf_counter() - begun, 3)
    yield Progress(course, step, epoch, losses, active, seconds)


def final_params(plan: Plan, course: Course) -> Any:
  """The parameters `[R, ...]` of a finished course: the last, or the best ones
  if there is patience. A method that finishes them sees some of the images."""
  best = course.best if plan.options['patience'] else course.state
  return _finish(plan, best.params)


def _finish(plan, params):
  """Parameters `[R, ...]` on one device, finished."""
  params = here(params)
  if plan.method.finish is None:
    return params
  key = jax.random.fold_in(plan.keys[0], FINISH)
  drawn = np.asarray(jax.random.permutation(key, plan.numbers))[:_SAMPLE]
  pixels = encoding.as_pixels(jnp.asarray(plan.source[drawn]))
  finish = jax.jit(plan.method.finish)
  return _stack([finish(own, pixels) for own in _runs(params)])


def complaints(plan: Plan, params: Any) -> list[str]:
  """What final parameters `[R, ...]` fall short of, each with a remedy."""
  if plan.method.complain is None:
    return []
  runs = map(plan.method.complain, _runs(jax.device_get(params)))
  return list(dict.fromkeys(message for run in runs for message in run))


def final_epochs(plan: Plan, course: Course) -> list[int]:
  """The epochs `[R]` that `final_params` are from."""
  last = course.state.step // plan.steps_per_epoch
  return np.asarray(
    course.best.epoch if plan.options['patience'] else last
  ).tolist()


def _train_epoch(course, plan):
  """Yields the course after each call of what is left of an epoch."""
  step = _step(course.state)
  epoch, begun = divmod(step, plan.steps_per_epoch)
  if not begun:
    course = _start_epoch(course, plan)
  put = functools.partial(replicate, plan.mesh)
  order = _draw_order(
    plan.orders,
    jax.device_put(np.int32(epoch)),
    jax.device_put(plan.numbers),
    plan.options['batch_size'],
    plan.method.couples,
  )
  cuts = range(begun, plan.steps_per_epoch, plan.steps_per_call)
  parts = _split(order, tuple(cuts), 1)[1:]
  for images, place, numbers in batches.batches(plan.images, parts, plan.mesh):
    rates = put(plan.rates[step : step + place.shape[1]])
    state = steps.train_steps(
      course.state,
      images,
      rows=place,
      numbers=numbers,
      targets=course.targets,
      learning_rates=rates,
      method=plan.train,
      optimizer=plan.options['optimizer'],
      mesh=plan.mesh,
      are_shares=not isinstance(plan.images, jax.Array),
      **plan.drawn,
    )
    course = course._replace(state=state)
    step = _step(state)
    yield course


_split = jax.jit(jnp.split, static_argnums=(1, 2))

_draw_order = jax.jit(batches.draw_order, static_argnums=(3, 4))


def _start_epoch(course, plan):
  """The course with no losses yet, and with new targets."""
  old = course.state.loss_sum
  zeros = replicate(plan.mesh, np.zeros(old.shape, old.dtype))
  course = course._replace(state=course.state._replace(loss_sum=zeros))
  if plan.method.targets is None:
    return course
  runs = _runs(_finish(plan, course.state.params))
  last = [None] * len(runs)
  if _step(course.state):
    last = _runs(here(course.targets))
  find, targets = jax.jit(plan.method.targets), []
  for own, before in zip(runs, last, strict=True):
    targets.append(find(own, _embeddings(plan, own), before))
  targets = replicate(plan.mesh, processes.same(_stack(targets)))
  return course._replace(targets=targets)


def _embeddings(plan, params):
  """Embeddings `[N, D]` of all images by the network of one run."""
  return _by_shares(encoding.embed, plan, params, plan.source)


def _by_shares(fn, plan, params, images):
  """What a function of `encoding` makes of images, each process of its own."""
  size = plan.options['batch_size']
  return processes.by_shares(
    lambda own: fn(plan.method, params, own, size), images
  )


def _runs(params):
  """The pytrees of the runs of a pytree `[R, ...]`."""
  num_runs = len(jax.tree.leaves(params)[0])
  # By numbers that are constants: JAX 0.8 would send them to the device.
  take = functools.partial(lax.index_in_dim, keepdims=False)
  return [
    jax.tree.map(functools.partial(take, index=r), params)
    for r in range(num_runs)
  ]


@jax.jit
def _stack(runs):
  return jax.tree.map(lambda *a: jnp.stack(a), *runs)


def _active(best, epoch, plan):
  """Which runs `[R]` make another epoch."""
  gap = epoch - jax.device_get(best.epoch)
  if epoch >= plan.options['num_epochs']:
    return np.zeros(gap.shape, bool)
  patience = plan.options['patience']
  return gap < patience if patience else np.ones(gap.shape, bool)


def _step(state):
  """The number of steps that all runs have made."""
  return int(jax.device_get(state.step)[0])


def _is_finite(state):
  """Whether parameters and losses of each run are finite, `[R]`."""
  return jax.device_get(is_finite((state.params, state.loss_sum)))


def _losses(state, plan):
  """Mean losses `[R]` of the epoch and of the images that validate it."""
  losses = {
    'train_loss': jax.device_get(state.loss_sum) / _images_of_an_epoch(plan)
  }
  if plan.validation is not None and validates(plan.method):
    errors = [
      _by_shares(encoding.errors, plan, own, plan.validation)
      for own in _runs(here(state.params))
    ]
    losses['val_loss'] = np.mean(jax.device_get(errors), axis=1)
  return losses


def _images_of_an_epoch(plan):
  seen = plan.steps_per_epoch * plan.options['batch_size']
  return min(seen, len(plan.numbers))


def _check_finite(state, losses, active, epoch, plan):
  finite = _is_finite(state) & np.isfinite([*losses.values()]).all(axis=0)
  bad = np.flatnonzero(active & ~finite)
  if bad.size:
    found = {name: float(loss[bad[0]]) for name, loss in losses.items()}
    raise RunError(
      f'the losses are {found} at epoch {epoch}: lower learning_rate, which is '
      f'{plan.options["learning_rate"]}'
    )


@jax.jit
def no_best(params: Any) -> Best:
  """The state of `keep_best` before the first epoch, of params `[R, ...]`."""
  runs = jax.tree.leaves(params)[0].shape[:1]
  loss = jnp.full(runs, jnp.inf)
  return Best(jax.tree.map(jnp.copy, params), loss, jnp.zeros(runs, jnp.int32))


@jax.jit
def is_finite(arrays: Any) -> jax.Array:
  """Whether all numbers of each run are finite, `[R]`, in a pytree of
  `[R, ...]`."""
  leaves = jax.tree.leaves(jax.tree.map(jnp.isfinite, arrays))
  runs = len(leaves[0])
  return jnp.all(jnp.stack([a.reshape(runs, -1).all(1) for a in leaves]), 0)


@jax.jit
def keep_best(
  best: Best, params: Any, losses: jax.Array, epoch: int, patience: int
) -> Best:
  """Takes the parameters of an epoch where their loss is the lowest.

  Args:
    best: of the epochs before.
    params: `[R, ...]`.
    losses: `[R]`.
    epoch: its number, from 1.
    patience: a run that has seen so many epochs since its best takes no more.
  """
  better = (losses < best.loss) & (epoch - best.epoch <= patience)

  def choose(new, old):
    return jax.vmap(jnp.where)(better, new, old)

  return Best(
    jax.tree.map(choose, params, best.params),
    choose(losses, best.loss),
    choose(jnp.full_like(best.epoch, epoch), best.epoch),
  )

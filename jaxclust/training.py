"""Training of the autoencoder by Adam on the mean squared error of pixels.

Several networks train side by side, each from a key of its own, as results are
reported over seeds: one after another on a CPU, at once elsewhere. The images
stay as they are (uint8 or float), and many steps are one device call, a scan
over the rows of their batches. Devices, and each core of a CPU can be one,
share every batch. What an epoch draws comes from `fold_in(key, epoch)`, what a
step draws of an image from the step and its place in the batch: a run that is
taken up at any step, on any number of devices, draws as if it had never
stopped.

Axes: R runs (networks), N images, S steps, B batch, H height, W width,
C channels, D numbers of the code.

Reference:
  Kingma and Ba (2015), Adam: a method for stochastic optimization,
    https://arxiv.org/abs/1412.6980
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclust import numerics
from jaxclust.autoencoder import Autoencoder, count_operations
from jaxclust.data.augment import Augmentation, augment
from jaxclust.numerics import InputError

# Images that a CPU takes through the network at once, so that what lies between
# two layers fits the cache of a core.
_PART = 32

# Operations of a step that are worth a device of their own.
_CPU_SHARE, _ACCELERATOR_SHARE = 1e8, 1e10

# The axis of a mesh whose devices share a batch.
_BATCH = 'batch'

# Of activations; parameters and losses are float32.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

# What a training draws, each from fold_in(key, number).
INIT, ORDER, AUGMENTATION = 0, 1, 3

# (peak, number of steps) -> a schedule of Optax.
SCHEDULES = {
  'constant': lambda peak, num_steps: optax.constant_schedule(peak),
  'cosine': lambda peak, num_steps: optax.cosine_decay_schedule(
    peak, max(1, num_steps)
  ),
}


class TrainState(NamedTuple):
  """What the next step needs, and the losses of the epoch so far."""

  params: Any  # [R, ...] the networks' variables
  opt_state: optax.OptState  # [R, ...]
  step: jax.Array  # [R] int32, over all epochs
  loss_sum: jax.Array  # [R] of the images seen since `start_epoch`


class Best(NamedTuple):
  """The parameters with the lowest loss so far."""

  params: Any  # [R, ...]
  loss: jax.Array  # [R]
  epoch: jax.Array  # [R] int32, after which these were the parameters


def check_options(
  *,
  num_epochs: int,
  batch_size: int,
  learning_rate: float,
  schedule: str = 'constant',
  warmup_epochs: float = 0.0,
  clip_norm: float = 0.0,
  patience: int = 0,
  holdout: float = 0.1,
  dtype: str = 'float32',
) -> None:
  """Checks the options of a training.

  Raises:
    InputError: if they are out of range.
  """
  numerics.check_count('num_epochs', num_epochs)
  numerics.check_count('batch_size', batch_size)
  numerics.check_count('patience', patience, low=0)
  numerics.check_number('learning_rate', learning_rate)
  numerics.check_number('warmup_epochs', warmup_epochs, high=num_epochs)
  numerics.check_number('clip_norm', clip_norm)
  numerics.check_number('holdout', holdout, high=0.5)
  for name, value, known in (
    ('schedule', schedule, SCHEDULES),
    ('dtype', dtype, DTYPES),
  ):
    if value not in known:
      raise InputError(
        f'{name} is {value!r}: it must be one of {", ".join(known)}'
      )


def fit(
  keys: jax.Array,
  images: jax.Array,
  *,
  model: Autoencoder,
  num_epochs: int,
  batch_size: int,
  learning_rate: float,
) -> tuple[Any, np.ndarray]:
  """Trains a network for each key, on images that the device holds.

  Args:
    keys: `[R]`, of all that a run draws.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    model: the network.
    num_epochs: E.
    batch_size: B.
    learning_rate: of Adam.

  Returns:
    The networks' variables `[R, ...]`, and their mean losses `[E, R]`, each
    epoch's over its own steps. A NaN or an infinity in either ends the training
    after its epoch, for the caller to judge.

  Raises:
    InputError: for options out of range.
  """
  check_options(
    num_epochs=num_epochs, batch_size=batch_size, learning_rate=learning_rate
  )
  fold_in = jax.vmap(jax.random.fold_in, (0, None))
  mesh = make_mesh(model, batch_size)
  state = replicate(mesh, init(fold_in(keys, INIT), model))
  images = replicate(mesh, images)
  draws = replicate(mesh, fold_in(keys, AUGMENTATION))
  rows = jnp.arange(len(images), dtype=jnp.int32)
  num_steps = steps_per_epoch(len(images), batch_size)
  rates = learning_rates(num_steps, num_steps, learning_rate=learning_rate)
  losses = []
  for epoch in range(num_epochs):
    order = draw_order(fold_in(keys, ORDER), epoch, rows, batch_size)
    state = train_steps(
      start_epoch(state),
      images,
      draws,
      replicate(mesh, order),
      rates,
      model=model,
      mesh=mesh,
    )
    losses.append(np.asarray(state.loss_sum) / len(images))
    if not is_finite((state.params, state.loss_sum)).all():
      break
  return jax.device_put(state.params, mesh.devices[0]), np.stack(losses)


@functools.partial(jax.jit, static_argnames='model')
def init(keys: jax.Array, model: Autoencoder) -> TrainState:
  """Draws the parameters of a network for each key `[R]`."""
  images = jnp.zeros((1, *model.image_shape))
  params = jax.vmap(lambda key: model.init(key, images))(keys)
  opt_state = jax.vmap(_optimizer(0.0).init)(params)
  zeros = jnp.zeros(keys.shape)
  return TrainState(params, opt_state, zeros.astype(jnp.int32), zeros)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
  """Steps in which every image is seen once; the last may be smaller."""
  return -(-num_images // batch_size)


def learning_rates(
  num_steps: int,
  num_steps_per_epoch: int,
  *,
  learning_rate: float,
  schedule: str = 'constant',
  warmup_epochs: float = 0.0,
) -> np.ndarray:
  """Learning rates `[num_steps]` of a whole training.

  Args:
    num_steps: over all epochs.
    num_steps_per_epoch: of them.
    learning_rate: the highest.
    schedule: of `SCHEDULES`, what follows the warm-up.
    warmup_epochs: in which the rate rises from 0 on a line.
  """
  warmup = round(warmup_epochs * num_steps_per_epoch)
  rates = optax.join_schedules(
    [
      optax.linear_schedule(0.0, learning_rate, warmup),
      SCHEDULES[schedule](learning_rate, num_steps - warmup),
    ],
    [warmup],
  )
  with jax.numpy_dtype_promotion('standard'):  # as Optax needs it
    return np.asarray(jax.vmap(rates)(jnp.arange(num_steps)), np.float32)


def held_out(num_images: int, share: float) -> np.ndarray:
  """A mask `[N]` of about that share of the images, evenly spread."""
  counts = np.floor(share * np.arange(num_images + 1))
  return np.diff(counts) > 0


@functools.partial(jax.jit, static_argnames='batch_size')
def draw_order(
  keys: jax.Array, epoch: int, rows: jax.Array, batch_size: int
) -> jax.Array:
  """The order of an epoch for each key `[R]`.

  Args:
    keys: of the runs' orders.
    epoch: its number.
    rows: `[N]` int32, the images to be seen.
    batch_size: B.

  Returns:
    Rows `[R, S, B]` of the images in each batch; -1 where the last is not full.
  """
  num_batches = steps_per_epoch(len(rows), batch_size)

  def order(key):
    drawn = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
    spare = (0, num_batches * batch_size - len(rows))
    drawn = jnp.pad(drawn, spare, constant_values=-1)
    return drawn.reshape(num_batches, batch_size)

  return jax.vmap(order)(keys)


def start_epoch(state: TrainState) -> TrainState:
  """The same state with no losses yet."""
  old = state.loss_sum
  zeros = jax.device_put(np.zeros(old.shape, old.dtype), old.sharding)
  return state._replace(loss_sum=zeros)


def make_mesh(model: Autoencoder, batch_size: int) -> Mesh:
  """The devices that are to share each batch: as many as it keeps busy."""
  devices = jax.devices()
  on_cpu = devices[0].platform == 'cpu'
  share = _CPU_SHARE if on_cpu else _ACCELERATOR_SHARE
  operations = 3 * batch_size * count_operations(model)
  most = min(len(devices), batch_size // _PART, operations // share)
  return Mesh(np.array(devices[: max(1, int(most))]), (_BATCH,))


def replicate(mesh: Mesh, arrays: Any) -> Any:
  """Puts a pytree of arrays on all devices of a mesh."""
  return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


@functools.partial(
  jax.jit, static_argnames=('model', 'mesh'), donate_argnames='state'
)
def train_steps(
  state: TrainState,
  images: jax.Array,
  keys: jax.Array,
  rows: jax.Array,
  learning_rates: jax.Array,
  *,
  model: Autoencoder,
  mesh: Mesh | None = None,
  clip_norm: float = 0.0,
  augmentation: Augmentation = Augmentation(),  # noqa: B008, immutable
) -> TrainState:
  """Makes a step with each batch.

  Args:
    state: of R runs, where to go on; its buffers are given up.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    keys: `[R]`, of what each run draws in its steps.
    rows: `[R, S, B]` int32, the images of each batch; -1 is none.
    learning_rates: `[S]`, of Adam.
    model: the network.
    mesh: the devices that share each batch, see `make_mesh`; None for one.
    clip_norm: the largest norm of a gradient, longer ones are shortened to it;
      0 for none.
    augmentation: what is drawn of each image.

  Returns:
    The state after the steps.
  """
  axis = None if mesh is None else _BATCH
  step = functools.partial(_train_step, model, axis, clip_norm, augmentation)

  def steps(state, images, keys, rows, learning_rates):
    def run(state, key, rows):
      def body(state, batch):
        return step(state, images, key, *batch), None

      return lax.scan(body, state, (rows, learning_rates))[0]

    return numerics.side_by_side(run, state, keys, rows)

  if mesh is not None:
    spare = -rows.shape[2] % mesh.size
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, spare)), constant_values=-1)
    whole, shared = PartitionSpec(), PartitionSpec(None, None, _BATCH)
    steps = jax.shard_map(
      steps,
      mesh=mesh,
      in_specs=(whole, whole, whole, shared, whole),
      out_specs=whole,
      check_vma=False,
    )
  return steps(state, images, keys, rows, learning_rates)


def _train_step(
  model, axis, clip_norm, augmentation, state, images, key, rows, learning_rate
):
  """The state after a step with `rows` [B], a device's share of the batch if
  `axis` is that of a mesh."""
  share = 0 if axis is None else lax.axis_index(axis)
  places = share * rows.shape[0] + jnp.arange(rows.shape[0])  # in the batch
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.fold_in(key, state.step), places
  )
  pixels = as_pixels(images[jnp.maximum(rows, 0)])
  seen, wanted = augment(keys, pixels, augmentation)
  weight = (rows >= 0).astype(jnp.float32)
  loss, grads = _gradient(state.params, seen, wanted, weight, model)
  sums = loss, grads, weight.sum()
  loss, grads, count = sums if axis is None else lax.psum(sums, axis)
  grads = jax.tree.map(lambda g: g / count, grads)
  with jax.numpy_dtype_promotion('standard'):  # as Optax needs it
    updates, opt_state = _optimizer(clip_norm).update(grads, state.opt_state)
  updates = jax.tree.map(lambda u: -learning_rate * u, updates)
  return TrainState(
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    step=state.step + 1,
    loss_sum=state.loss_sum + loss,
  )


def _optimizer(clip_norm):
  """Adam's direction; the learning rate is applied apart, as data."""
  clip_norm = jnp.where(clip_norm > 0, clip_norm, jnp.inf)
  return optax.chain(
    optax.clip_by_global_norm(clip_norm), optax.scale_by_adam()
  )


def _gradient(params, seen, wanted, weight, model):
  """The weighted sum of a batch's losses, and its gradient."""

  def total(params):
    losses = functools.partial(image_losses, params, model=model)
    return jnp.vdot(
      weight,
      lax.platform_dependent(
        seen, wanted, cpu=functools.partial(_in_parts, losses), default=losses
      ),
    )

  return jax.value_and_grad(total)(params)


def _in_parts(fn, *arrays):
  """`fn` of parts of at most `_PART` rows of arrays `[B, ...]`, `[B]`."""
  num_rows = len(arrays[0])
  num_parts = -(-num_rows // _PART)
  size = -(-num_rows // num_parts)

  def split(array):
    spare = (num_parts * size - num_rows, *array.shape[1:])
    array = jnp.concatenate([array, jnp.zeros(spare, array.dtype)])
    return array.reshape(num_parts, size, *array.shape[1:])

  parts = tuple(map(split, arrays))
  return lax.map(lambda part: fn(*part), parts).reshape(-1)[:num_rows]


def image_losses(
  params: Any, seen: jax.Array, wanted: jax.Array, *, model: Autoencoder
) -> jax.Array:
  """The mean squared error `[B]` of each image.

  Args:
    params: of one network.
    seen: what it encodes, `[B, H, W, C]` in [0, 1].
    wanted: what it is to decode.
    model: the network.
  """
  errors = jnp.square(model.apply(params, seen) - wanted)
  return errors.mean(axis=(1, 2, 3))


def no_best(params: Any) -> Best:
  """What there is before the first epoch: parameters `[R, ...]` as they are."""
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


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def sum_losses(
  params: Any, images: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Sums `[R]` of the losses of images `[N, H, W, C]`, for R networks."""

  def run(params):
    def part(images, weight):
      pixels = as_pixels(images)
      losses = image_losses(params, pixels, pixels, model=model)
      return jnp.vdot(weight, losses)

    weight = jnp.ones(images.shape[0])
    return numerics.sum_blocks(part, images, weight, batch_size)

  return numerics.side_by_side(run, params)


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def encode(
  params: Any, images: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Codes `[N, D]` of images `[N, H, W, C]` by one network, in batches."""
  return numerics.map_blocks(
    lambda images: model.apply(params, as_pixels(images), method='encode'),
    images,
    batch_size,
  )


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def decode(
  params: Any, codes: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Images `[N, H, W, C]` of codes `[N, D]` by one network, in batches."""
  return numerics.map_blocks(
    lambda codes: model.apply(params, codes, method='decode'),
    codes,
    batch_size,
  )


@functools.partial(jax.jit, static_argnames=('model', 'batch_size'))
def errors(
  params: Any, images: jax.Array, *, model: Autoencoder, batch_size: int
) -> jax.Array:
  """Mean squared errors `[N]` of the reconstructions of images `[N, H, W, C]`
  by one network, in batches."""

  def part(images):
    pixels = as_pixels(images)
    return image_losses(params, pixels, pixels, model=model)

  return numerics.map_blocks(part, images, batch_size)


def as_points(images: jax.Array) -> jax.Array:
  """Pixels `[N, H W C]` of images `[N, H, W, C]`; bytes are divided by 255 to
  the last bit, as k-means draws its starts by the content of rows."""
  pixels = numerics.as_float(images)
  if images.dtype == jnp.uint8:
    # Of a number XLA would take the reciprocal.
    pixels /= lax.optimization_barrier(jnp.full_like(pixels, 255))
  return pixels.reshape(images.shape[0], -1)


def as_pixels(images: jax.Array) -> jax.Array:
  """Images as floats; bytes 0 to 255 become 0 to 1."""
  pixels = numerics.as_float(images)
  return pixels / 255 if images.dtype == jnp.uint8 else pixels

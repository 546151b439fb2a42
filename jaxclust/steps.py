"""Steps of an optimiser on mini-batches, for several networks side by side.

Many steps are one device call, a scan over their batches. Devices, and each
core of a CPU can be one, share every batch; how many they are decides in which
order their sums are rounded. What a step draws of an image comes from the step
and the place of the image in the batch.

Axes: R runs, N images, S steps, B batch, H height, W width, C channels.

References:
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
from jax.sharding import Mesh, PartitionSpec

from jaxclust.data import augment
from jaxclust.encoding import as_pixels
from jaxclust.methods import Batch, Method

# Fewest images of a batch that are worth a device of their own.
_FEWEST_IMAGES = 32

# Operations of a step that are worth a device of their own.
_CPU_SHARE, _ACCELERATOR_SHARE = 1e8, 1e10

# Number that the keys of an image's views are folded with for its loss.
_LOSS = 2**31 - 1

# The axis of a mesh whose devices share a batch.
_BATCH = 'batch'

# Share of the steps done -> share of the highest learning rate.
SCHEDULES = {
  'constant': np.ones_like,
  'cosine': lambda done: (1 + np.cos(np.pi * done)) / 2,
}

# Name -> momentum -> the direction of a step; its length is the learning rate.
OPTIMIZERS = {
  'adam': lambda momentum: optax.scale_by_adam(b1=momentum),
  'sgd': lambda momentum: optax.trace(decay=momentum),
}


class TrainState(NamedTuple):
  """What the next step needs, and the losses of the epoch so far."""

  params: Any  # [R, ...]
  opt_state: optax.OptState  # [R, ...]
  step: jax.Array  # [R] int32, over all epochs
  loss_sum: jax.Array  # [R] of the images seen in this epoch


def learning_rates(num_steps_per_epoch: int, options: dict) -> np.ndarray:
  """Learning rates `[S]` of all steps: a warm-up from 0 on a line, and then one
  of `SCHEDULES`."""
  num_steps = options['num_epochs'] * num_steps_per_epoch
  warmup = round(options['warmup_epochs'] * num_steps_per_epoch)
  step = np.arange(num_steps)
  done = (step - warmup) / max(1, num_steps - warmup)
  after = SCHEDULES[options['schedule']](done)
  shares = np.where(step < warmup, step / max(1, warmup), after)
  return np.float32(options['learning_rate'] * shares)


def make_mesh(
  operations: int, batch_size: int, uses_all_cores: bool = False
) -> Mesh:
  """The devices that are to share each batch: as many as it keeps busy, and
  at least one of each process.

  Args:
    operations: of a network for one image.
    batch_size: B.
    uses_all_cores: whether it keeps all cores busy as one device.
  """
  devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
  on_cpu = devices[0, 0].platform == 'cpu'
  share = _CPU_SHARE if on_cpu else _ACCELERATOR_SHARE
  shares = 3 * batch_size * operations // share
  most = min(devices.size, batch_size // _FEWEST_IMAGES, shares)
  of_each = max(1, int(most) // len(devices))  # of a process
  if on_cpu and uses_all_cores:
    of_each = 1
  return Mesh(devices[:, :of_each].reshape(-1), (_BATCH,))


@functools.partial(
  jax.jit,
  static_argnames=('method', 'optimizer', 'mesh', 'are_shares'),
  donate_argnames='state',
)
def train_steps(
  state: TrainState,
  images: jax.Array,
  keys: jax.Array,
  rows: jax.Array,
  learning_rates: jax.Array,
  *,
  method: Method,
  numbers: jax.Array | None = None,
  targets: Any = (),
  optimizer: str = 'adam',
  mesh: Mesh | None = None,
  are_shares: bool = False,
  clip_norm: float = 0.0,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  augmentation: augment.Augmentation = augment.Augmentation(),  # noqa: B008
) -> TrainState:
  """Makes a step with each batch.

  Args:
    state: of R runs, where to go on; its buffers are given up.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    keys: `[R]`, of what each run draws in its steps.
    rows: `[R, S, B]` int32, the images of each batch; -1 is none.
    learning_rates: `[S]`.
    method: whose loss is lowered.
    numbers: `[R, S, B]` int32, the places of the images in targets, or None.
    targets: pytree of `[R, N, ...]`.
    optimizer: of `OPTIMIZERS`.
    mesh: the devices that share each batch, see `make_mesh`; None for one.
    are_shares: whether each of them has images of its own, as many as the
      others, among which its rows are.
    clip_norm: maximum norm of a gradient, longer ones are shortened to it; 0
      for none.
    momentum: what past gradients weigh in a step.
    weight_decay: times the parameters, added to their gradient.
    augmentation: what is drawn of each image.

  Returns:
    The state after the steps.
  """
  axis = None if mesh is None else _BATCH
  descent = optimizer_of(optimizer, clip_norm, momentum, weight_decay)
  step = functools.partial(_train_step, method, descent, axis, augmentation)
  numbers = rows if numbers is None else numbers

  def steps(state, images, keys, targets, rows, numbers, learning_rates):
    def one_run(state, key, targets, rows, numbers):
      def body(state, batch):
        return step(state, images, targets, key, *batch), None

      return lax.scan(body, state, (rows, numbers, learning_rates))[0]

    return _side_by_side(one_run, state, keys, targets, rows, numbers)

  if mesh is not None:
    rows, numbers = (_padded(a, mesh.size) for a in (rows, numbers))
    steps = _shared_by(mesh, steps, are_shares)
  return steps(state, images, keys, targets, rows, numbers, learning_rates)


def _padded(rows, count):
  """Rows `[R, S, B]` with B a multiple of the count; -1 is none."""
  missing = (0, 0), (0, 0), (0, -rows.shape[2] % count)
  return jnp.pad(rows, missing, constant_values=-1)


def _shared_by(mesh, steps, are_shares):
  """The same steps with the batches shared by the devices of a mesh."""
  whole, shared = PartitionSpec(), PartitionSpec(None, None, _BATCH)
  images = PartitionSpec(_BATCH) if are_shares else whole
  return jax.shard_map(
    steps,
    mesh=mesh,
    in_specs=(whole, images, whole, whole, shared, shared, whole),
    out_specs=whole,
    check_vma=False,
  )


def _side_by_side(fn, *runs):
  """Applies `fn` to each of R runs: one after another on a CPU, whose cores one
  alone keeps busy, at once elsewhere."""
  return lax.platform_dependent(
    *runs,
    cpu=lambda *runs: lax.map(lambda run: fn(*run), runs),
    default=jax.vmap(fn),
  )


def _train_step(
  method,
  optimizer,
  axis,
  augmentation,
  state,
  images,
  targets,
  key,
  rows,
  numbers,
  learning_rate,
):
  """The state after a step with `rows` [B], a device's share of the batch if
  `axis` is that of a mesh."""
  share = 0 if axis is None else lax.axis_index(axis)
  places = share * rows.shape[0] + jnp.arange(rows.shape[0])  # in the batch
  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.fold_in(key, state.step), places
  )
  pixels = as_pixels(images[jnp.maximum(rows, 0)])
  views, wanted = augment.augment(keys, pixels, augmentation, method.num_views)
  weight = (rows >= 0).astype(jnp.float32)
  own = jax.tree.map(lambda a: a[jnp.maximum(numbers, 0)], targets)
  drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, _LOSS)
  batch = Batch(views, wanted, weight, own, drawn)

  def pool(sums):
    return sums if axis is None else lax.psum(sums, axis)

  loss, grads = jax.value_and_grad(method.loss)(
    state.params, batch, state.step, pool
  )
  loss, grads, count = pool((loss, grads, weight.sum()))
  grads = jax.tree.map(lambda g: g / count, grads)
  with jax.numpy_dtype_promotion('standard'):  # as Optax needs it
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: -learning_rate * u, updates)
  return TrainState(
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    step=state.step + 1,
    loss_sum=state.loss_sum + loss,
  )


def optimizer_of(
  name: str,
  clip_norm: float = 0.0,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
) -> Any:
  """The direction of a step; the learning rate is applied apart, as data."""
  clip_norm = jnp.where(clip_norm > 0, clip_norm, jnp.inf)
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.add_decayed_weights(weight_decay),
    OPTIMIZERS[name](momentum),
  )

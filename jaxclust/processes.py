"""Processes that work on one run together, on one machine or on many.

All make the same calls in the same order: each takes its share of the images of
a batch and of the rows of a pass, and all see the same sums. Process 0 leads:
it alone reads and writes the run directory. With one process nothing changes.

Axes: N rows.
"""

import collections
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclust import links, runtime
from jaxclust.errors import InputError, one_line

# Variables by which SLURM and Open MPI tell how many processes they started.
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')

# Variable with the hosts of a pod of TPUs, between commas.
_HOSTS = 'TPU_WORKER_HOSTNAMES'

# Seconds in which all processes are to be there.
_SECONDS_TO_MEET = 300

# Maximum bytes of a text that process 0 passes to the others.
_TEXT_BYTES = 512


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes, if there are any; call it before JAX works.

  Args:
    coordinator: `HOST:PORT` of process 0, where JAX connects all; 'auto' to let
      JAX find the others; None to do so where a launcher has started several.
    num_processes: how many there are; 1 without a coordinator to stay alone.
    process_id: which of them this is, from 0.

  Raises:
    InputError: if they cannot be joined.
  """
  if (coordinator, num_processes, process_id) == (None, 1, None):
    return
  named = [v is not None for v in (num_processes, process_id)]
  is_named = coordinator not in (None, 'auto')
  if any(named) != is_named or is_named != all(named):
    raise InputError(
      'name the processes by --coordinator=HOST:PORT, --num_processes and '
      '--process_id together, or by none of them'
    )
  if coordinator is None and not _are_started():
    return
  if is_named:
    _check_named(coordinator, num_processes, process_id)
  runtime.configure()
  jax.config.update('jax_enable_preemption_service', False)  # as `signals` hear
  address = coordinator if is_named else None
  try:
    with links.patience(_SECONDS_TO_MEET):
      jax.distributed.initialize(
        *(address, num_processes, process_id),
        initialization_timeout=_SECONDS_TO_MEET + 60,  # JAX aborts then
      )
      if are_several():
        _check_devices()
        _connect(address)
  except InputError:
    raise
  except (OSError, RuntimeError, ValueError, TypeError) as error:
    raise InputError(
      f'the other processes cannot be joined ({one_line(error)}): start all of '
      'them, with the same --coordinator=HOST:PORT and --num_processes, and '
      'each with its own --process_id'
    ) from error
  if not leads():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, for good


def _check_named(coordinator, num_processes, process_id):
  """Checks what JAX would abort at."""
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise InputError(
      f'--coordinator is {coordinator!r}: it must be HOST:PORT of process 0'
    )
  if not 0 <= process_id < num_processes:
    raise InputError(
      f'--process_id is {process_id}: it must be from 0 to {num_processes - 1}'
    )
  if process_id:
    return
  try:
    socket.create_server(('', int(port))).close()
  except OSError as error:
    raise InputError(
      f'port {port} of --coordinator cannot be used ({error.strerror}): name '
      'another one to all'
    ) from error


def _check_devices():
  counts = collections.Counter(d.process_index for d in jax.devices())
  if len(set(counts.values())) > 1:
    raise InputError(
      f'processes have {sorted(counts.values())} devices, and need the same '
      'number each: on CPUs set XLA_FLAGS='
      '--xla_force_host_platform_device_count=N'
    )


def _are_started():
  """Whether a launcher has started this process as one of several."""
  counts = [int(os.environ.get(name) or 1) for name in _COUNTS]
  return max(counts) > 1 or ',' in os.environ.get(_HOSTS, '')


def _connect(address):
  """Links this process with process 0."""
  server, place = None, {}
  if leads():
    host = (address or '').rpartition(':')[0].strip('[]')
    server, place = links.serve(host)
  place = json.loads(_told(json.dumps(place)))
  if leads():
    links.accept(server, place['token'], jax.process_count())
  else:
    links.reach(place, jax.process_index())


def _told(text):
  """The text of process 0."""
  note = np.zeros(_TEXT_BYTES, np.uint8)
  own = text.encode()
  note[: len(own)] = list(own)
  return bytes(np.asarray(same(note))).rstrip(b'\0').decode()


def are_several() -> bool:
  """Whether this process is one of several; JAX need not work yet."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def leads() -> bool:
  """Whether this is process 0, or the only one."""
  return not are_several() or jax.process_index() == 0


def new_folder() -> str:
  """A folder of a process that does not lead, removed when it ends."""
  folder = tempfile.mkdtemp(prefix='jaxclust-')
  links.remove_at_end(folder)
  return folder


def same(arrays: Any) -> Any:
  """A pytree of arrays as process 0 has it; all have one of its shapes."""
  if not are_several():
    return arrays

  return jax.tree.map(
    lambda a: jnp.asarray(_gather(np.asarray(a), 'first')), arrays
  )


def first_says(is_so: bool) -> bool:
  """Whether it is so in process 0."""
  return bool(same(np.bool_(is_so)))


def _gather(own, how):
  """What one of `_GATHERED` makes of the arrays `[...]` of all processes.

  It lies on one device of each process, however many these have, where JAX's
  `multihost_utils` has a copy on each.
  """
  firsts = np.array(jax.devices()).reshape(jax.process_count(), -1)[:, 0]
  mesh = Mesh(firsts, ('process',))
  each = jax.make_array_from_callback(
    (len(firsts), *own.shape),
    NamedSharding(mesh, PartitionSpec('process')),
    lambda index: own[None],
  )
  whole = NamedSharding(mesh, PartitionSpec())
  found = _GATHERED[how](each, whole)
  return np.asarray(found.addressable_data(0))


_GATHERED = {
  'all': jax.jit(lax.with_sharding_constraint, static_argnums=1),
  'first': jax.jit(
    lambda a, to: lax.with_sharding_constraint(a[0], to), static_argnums=1
  ),
}


def most(number: int) -> int:
  """The largest of the numbers of all processes."""
  if not are_several():
    return number
  return int(_gather(np.int32(number), 'all').max())


def meet() -> None:
  """Waits until all processes have come here."""
  most(0)


def check_same(name: str, content: Any) -> None:
  """Checks that all processes have the same content, as JSON.

  Raises:
    InputError: if one has another.
  """
  if not are_several():
    return
  text = json.dumps(content, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  if _told(digest) != digest:
    raise InputError(
      f'{name} of process {jax.process_index()} differ from those of process '
      '0: give the same to all, or --num_processes=1 to runs of their own'
    )


def by_shares(fn: Callable, x: jax.Array | np.ndarray) -> jax.Array:
  """An array `fn(x) [N, ...]` of rows `[N, ...]`, of which each process makes
  its share and gets the whole."""
  if not are_several():
    return fn(x)
  count = jax.process_count()
  size = -(-len(x) // count)
  start = min(size * jax.process_index(), len(x) - size)
  parts = _gather(np.asarray(fn(x[start : start + size])), 'all')
  starts = np.minimum(size * np.arange(count), len(x) - size)
  again = size * np.arange(count) - starts  # rows that the part before has
  own = [part[n:] for part, n in zip(parts, again, strict=True)]
  return jnp.asarray(np.concatenate(own))


def share_rows(x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Rows `[N, D]` shared by the devices of all processes, and their weights.

  Rows of weight 0 are added where the devices are no divisor of N. One process
  gets x as it is, and None.
  """
  if not are_several():
    return x, None
  mesh = Mesh(np.array(jax.devices()), ('rows',))
  missing = -len(x) % mesh.size
  weight = np.pad(np.ones(len(x), np.float32), (0, missing))
  x = np.pad(np.asarray(x), ((0, missing), (0, 0)))
  by_rows = NamedSharding(mesh, PartitionSpec('rows'))
  return (
    jax.make_array_from_callback(x.shape, by_rows, lambda index: x[index]),
    weight,
  )


def replicate(mesh: Mesh, arrays: Any) -> Any:
  """Puts a pytree of arrays, the same in all processes, on all devices of a
  mesh."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  if not are_several():
    return jax.device_put(arrays, everywhere)

  def put(array):
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
      return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put(jax.random.key_data(array)))
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, everywhere, lambda index: array[index]
    )

  return jax.tree.map(put, arrays)


def here(arrays: Any) -> Any:
  """Arrays that `replicate` has put on a mesh, on one device of this
  process."""
  return jax.tree.map(lambda a: a.addressable_data(0), arrays)

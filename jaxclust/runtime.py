"""What a process needs before it works: memory, devices, compiled programs."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxclust.errors import InputError, one_line
from jaxclust.paths import as_path

# glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD: no memory of its own for
# large buffers, never give back, take 256 MiB at a time.
_MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}

# Maximum bytes of compiled programs that are kept for later runs.
_CACHE_BYTES = 2**31

# The flag that tells XLA how many devices a CPU is.
_COUNT_FLAG = 'xla_force_host_platform_device_count'

# The flag that lets XLA compile products of its own for NVIDIA's GPUs, JAX's
# plugins for these, and the first version of JAX that may not know the flag.
_PRODUCTS_FLAG = 'xla_gpu_enable_triton_gemm'
_NVIDIA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
_UNKNOWN_FROM = (0, 13)

# Libraries whose versions a summary names.
_VERSIONS = ('jaxclust', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')
_VERSIONS += ('scikit-learn',)


def prepare() -> None:
  """Sets up this process; has an effect before JAX starts to work.

  Raises:
    InputError: if JAX has no device to work on.
  """
  configure()
  check_device()


def configure() -> None:
  """Sets up what does not need a device; JAX need not work yet."""
  _keep_freed_memory()
  _keep_programs()
  _leave_products_to_cublas()
  _use_all_cores()


def _keep_freed_memory():
  """Lets glibc, if there is one, keep what XLA's temporaries give back, as the
  next step asks for it again; page faults would cost a third of a training."""
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in _MALLOC_OPTIONS.items():
      mallopt(option, value)


def _keep_programs():
  """Lets later runs load what this one compiles, unless the user has told JAX
  where to keep programs, or nothing can be kept."""
  if not jax.config.jax_compilation_cache_dir:
    with contextlib.suppress(InputError):
      keep_programs()


def keep_programs(folder: str | os.PathLike | None = None) -> pathlib.Path:
  """Keeps what XLA compiles from now on, for later processes to load.

  They too call this first. Where programs of this package exceed 2 GiB, those
  that were used least recently are removed.

  Args:
    folder: where to keep them; `jaxclust` in `$XDG_CACHE_HOME`, or in
      `~/.cache`, if None. It is made if it does not exist.

  Returns:
    The folder.

  Raises:
    InputError: if the folder cannot be written.
  """
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = as_path(folder or pathlib.Path(home, 'jaxclust'))
  try:
    path.mkdir(parents=True, exist_ok=True)
    remove_oldest(path, _CACHE_BYTES)
  except OSError as error:
    raise _no_cache(path, error.strerror) from error
  if not os.access(path, os.W_OK):
    raise _no_cache(path, 'it is read-only')
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  compilation_cache.reset_cache()  # JAX may have looked for one already
  return path


def _no_cache(path, why):
  return InputError(f'no programs can be kept in {path} ({why}): name another')


def remove_oldest(folder: pathlib.Path, bound: int) -> None:
  """Removes those programs of a folder that were used least recently, until the
  rest has at most `bound` bytes."""
  used = []
  for file in folder.glob('*-cache'):  # as JAX names them
    with contextlib.suppress(FileNotFoundError):  # another process removes too
      found = file.stat()
      used.append((max(found.st_atime, found.st_mtime), found.st_size, file))
  total = sum(size for _, size, _ in used)
  for _, size, file in sorted(used):
    if total <= bound:
      return
    file.unlink(missing_ok=True)
    total -= size


def _leave_products_to_cublas():
  """Spares XLA products of its own on NVIDIA's GPUs, where cuBLAS has them: XLA
  compiles tens of each and times them, for minutes where they have the full
  precision of float32."""
  flags = os.environ.get('XLA_FLAGS', '')
  is_known = jax.__version_info__ < _UNKNOWN_FROM
  has_gpu = any(importlib.util.find_spec(name) for name in _NVIDIA_PLUGINS)
  if has_gpu and is_known and _PRODUCTS_FLAG not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} --{_PRODUCTS_FLAG}=false'.strip()


def _use_all_cores():
  """Makes each core of the CPU a device, as training shares batches among
  devices; not where JAX works already, or has been told how many."""
  if _COUNT_FLAG in os.environ.get('XLA_FLAGS', ''):
    return
  cores = os.cpu_count()
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  with contextlib.suppress(RuntimeError):
    if jax.config.jax_num_cpu_devices < 0:
      jax.config.update('jax_num_cpu_devices', cores)


def check_device() -> None:
  """Raises an InputError if JAX finds none of the devices that it shall use."""
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    reason = str(error) or 'none is there'
    raise InputError(
      f'JAX finds no device where JAX_PLATFORMS is {jax.config.jax_platforms!r}'
      f' ({one_line(reason)}): unset it, or install what it needs, as '
      "'jaxclust[cuda]'"
    ) from error


def device() -> str:
  """Platform and kind of the first device."""
  first, count = jax.devices()[0], jax.process_count()
  several = f' of {count} processes' if count > 1 else ''
  return f'{first.platform} ({first.device_kind}){several}'


def versions() -> dict[str, str]:
  """Versions of Python and of the libraries at work."""
  return {
    'python': sys.version.split()[0],
    **{name: importlib.metadata.version(name) for name in _VERSIONS},
  }

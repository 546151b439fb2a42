"""How much memory there is."""

import contextlib
import os
import pathlib
import resource

import jax

# Files in which Linux keeps the memory limit of a container (cgroups 2 and 1).
_CONTAINER_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def host_bytes() -> int:
  """Memory that this process may fill: the machine's, or the limit of its
  container or of the process."""
  found = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  for file in _CONTAINER_LIMITS:
    with contextlib.suppress(OSError, ValueError):  # there may be no number
      found.append(int(pathlib.Path(file).read_text()))
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  return min(found if limit == resource.RLIM_INFINITY else [*found, limit])


def device_bytes() -> float:
  """Memory of a device; devices that are cores of a CPU share the host's."""
  devices = jax.local_devices()
  stats = devices[0].memory_stats()
  if stats is not None:
    return stats['bytes_limit']
  return host_bytes() / len(devices)

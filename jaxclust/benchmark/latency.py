"""Contests of first calls, each in a new process.

Programs are compiled anew, and where they are kept, loaded.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence

from jaxclust import checks
from jaxclust.benchmark import first_call
from jaxclust.benchmark.contest import OURS, Contest, Task

# The folder that this package is in, installed or not.
_ROOT = pathlib.Path(__file__).parents[2]


def plan_latency(
  image_shape: Sequence[int], *, works: Sequence[str]
) -> list[Callable]:
  """First calls on scikit-learn's iris, 150 rows of 4 numbers.

  Args:
    image_shape: of images, which no first call sees.
    works: of `first_call.WORK`.
  """
  del image_shape
  for work in works:
    checks.check_choice('each of works', work, first_call.WORK)
  return [functools.partial(_first_call, work) for work in works]


def _first_call(work, key, images):
  del key, images
  name, _, tolerance = first_call.WORK[work]
  tasks = {library: _task(work, library) for library in first_call.LIBRARIES}
  if work != 'import':
    folder = tempfile.mkdtemp(prefix='jaxclust-')
    kept = _task(work, OURS, folder)
    weakref.finalize(kept.run, shutil.rmtree, folder)
    tasks[f'{OURS}, kept programs'] = kept
  return Contest(
    f'first call, {name}', tasks, tolerance, operations=0, numbers=0
  )


def _task(work, library, folder=None):
  """A process that times itself, as its own start and import do not count.

  Programs are kept in the folder from the warm-up on, or never if it is None.
  """
  told = []

  def run():
    command = [sys.executable, '-P', first_call.__file__, work, library]
    command += [folder] if folder else []
    paths = str(_ROOT), os.environ.get('PYTHONPATH', '')
    environment = os.environ | {
      'JAX_ENABLE_COMPILATION_CACHE': str(int(bool(folder))),
      'PYTHONPATH': os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
      command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    told[:] = map(float, done.stdout.split())
    return lambda: told[1]

  return Task(run, seconds=lambda: told[0])

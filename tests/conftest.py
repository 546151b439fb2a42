"""Strict numerics for every test, two devices, and programs that all tests of a
session share on disk, but not in memory."""

import contextlib
import functools
import gc
import io
import logging
import os
import random
import shutil
import tempfile

import jax
import pytest
import small_runs

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_num_cpu_devices', 2)

# Seconds of compilation from which a program is kept on disk.
_KEPT_SECONDS = 0.1


def pytest_configure(config):
  """Names a folder of compiled programs for this session: for its workers, and
  for the processes that tests start."""
  if not hasattr(config, 'workerinput'):
    folder = tempfile.mkdtemp(prefix='programs-')
    config.add_cleanup(functools.partial(shutil.rmtree, folder, True))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = str(
      _KEPT_SECONDS
    )
  folder = os.environ['JAX_COMPILATION_CACHE_DIR']
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _KEPT_SECONDS)


def pytest_addoption(parser):
  parser.addoption(
    '--kills',
    type=int,
    default=3,
    help='how often a run is killed at a random moment',
  )
  parser.addoption(
    '--kill_seed',
    type=int,
    default=random.SystemRandom().randrange(2**32),
    help='seed of those moments, to repeat a run that failed',
  )


@pytest.fixture(autouse=True, scope='module')
def _forget_what_was_compiled():
  """All programs of all modules would take more memory maps than Linux gives
  to a process (vm.max_map_count), and the compiler would crash."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """Makes a small run of a config, once for all tests; see `small_runs`."""

  @functools.cache
  def make(name):
    path, out = tmp_path_factory.mktemp(name), io.StringIO()
    with contextlib.redirect_stdout(out):
      assert small_runs.run(name, path, *small_runs.SMALL[name]) == 0
    return small_runs.Finished(path, out.getvalue())

  return make


@pytest.fixture(scope='module')
def light_compiler():
  """Programs that run once are compiled in three quarters of the time."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def count_programs(caplog):
  """How many programs a call compiles."""

  def count(fn, *args, **options):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      fn(*args, **options)
    return sum('XLA compilation' in text for text in caplog.messages)

  return count

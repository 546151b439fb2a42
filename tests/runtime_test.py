"""What a process sets up: memory, devices, the cache of programs."""

import ctypes
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_runs import ROOT, SMALL

from jaxclust import keep_programs, runtime
from jaxclust.errors import InputError

ALLOCATE = """
import ctypes
from jaxclust import runtime

class Info(ctypes.Structure):  # as mallinfo(3) has it
  _fields_ = [(name, ctypes.c_size_t) for name in (
    'arena', 'ordblks', 'smblks', 'hblks', 'mapped', 'usmblks', 'fsmblks',
    'used', 'free', 'keepcost')]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
before = libc.mallinfo2()
runtime._keep_freed_memory()
large = libc.malloc(ctypes.c_size_t(2**27))
assert libc.mallinfo2().mapped == before.mapped, 'a map of its own'
libc.free(ctypes.c_void_p(large))
assert libc.mallinfo2().free >= 2**27, 'given back'
"""


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallinfo2'), reason='only glibc tells'
)
def test_large_buffers_stay_with_the_process_once_freed():
  subprocess.run([sys.executable, '-c', ALLOCATE], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_second_run_loads_what_the_first_has_compiled(tmp_path):
  arrays, programs = [], []
  for name in ('first', 'second'):
    command = [sys.executable, 'launch.py', '--config=configs/kmeans.py:digits']
    command += [f'--workdir={tmp_path / name}', *SMALL['kmeans']]
    environment = os.environ | {
      'XDG_CACHE_HOME': str(tmp_path),
      'JAX_COMPILATION_CACHE_DIR': '',
      'JAX_ENABLE_COMPILATION_CACHE': '1',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    arrays.append((tmp_path / name / 'assignments.npz').read_bytes())
    entries = (tmp_path / 'jaxclust').glob('*-cache')
    programs.append({path.name for path in entries})
  assert len(programs[0]) > 20  # and so the small ones too
  assert programs[0] == programs[1]
  assert arrays[0] == arrays[1]


@pytest.fixture
def no_cache(monkeypatch):
  """The options of a JAX that keeps no programs; the old ones come back."""
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.usefixtures('no_cache')
def test_the_cache_of_programs_is_bounded(tmp_path, monkeypatch):
  """Programs that were used least recently go first, other files stay."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(runtime, '_CACHE_BYTES', 250)
  cache = tmp_path / 'jaxclust'
  cache.mkdir()
  names = ('a-cache', 3), ('b-cache', 1), ('c-cache', 4), ('d-cache', 2)
  for name, used in (*names, ('thesis.tex', 0)):
    (cache / name).write_bytes(bytes(100))
    os.utime(cache / name, (used, used))
  runtime._keep_programs()
  left = sorted(file.name for file in cache.iterdir())
  assert left == ['a-cache', 'c-cache', 'thesis.tex']
  assert jax.config.jax_compilation_cache_dir == str(cache)


@pytest.mark.usefixtures('no_cache')
def test_programs_are_kept_from_one_call_on(tmp_path):
  jax.jit(lambda x: x - 1)(jnp.ones(3))  # JAX has looked for a cache
  assert keep_programs(tmp_path / 'new') == tmp_path / 'new'
  assert not list(tmp_path.glob('new/*'))
  jax.jit(lambda x: x + 1)(np.ones(3))
  assert len(list(tmp_path.glob('new/*-cache'))) == 1


@pytest.mark.usefixtures('no_cache')
def test_a_folder_for_programs_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match=r'kept in .*file .*: name another'):
    keep_programs(tmp_path / 'file')
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures('no_cache')
def test_a_cache_that_the_user_has_chosen_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'own'))
  runtime._keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'own')
  assert not (tmp_path / 'jaxclust').exists()


@pytest.mark.usefixtures('no_cache')
def test_a_place_that_cannot_be_written_keeps_no_programs(
  tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  runtime._keep_programs()
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
  'code',
  [
    'from jaxclust import runtime; runtime.prepare()',
    'from jaxclust.estimators import KMeans; KMeans(2).fit([[0.0], [1.0]])',
  ],
)
def test_a_device_that_is_not_there_is_reported(code):
  environment = os.environ | {'JAX_PLATFORMS': 'nonesuch'}
  run = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    capture_output=True,
    text=True,
  )
  last = run.stderr.splitlines()[-1]
  assert last.startswith(
    'jaxclust.errors.InputError: JAX finds no device where '
  )
  assert "JAX_PLATFORMS is 'nonesuch'" in last
  assert 'unset it' in last


def test_who_has_told_xla_the_number_of_devices_is_heard():
  code = (
    'import jax; from jaxclust import runtime\n'
    'runtime._use_all_cores(); print(jax.device_count())'
  )
  flags = '--xla_force_host_platform_device_count=3'
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == '3\n'


@pytest.mark.parametrize(
  ('plugin', 'version', 'flags', 'expected'),
  [
    ('jax_cuda13_plugin', (0, 11, 2), '', '--xla_gpu_enable_triton_gemm=false'),
    (
      'jax_cuda12_plugin',
      (0, 8, 0),
      '--a=1',
      '--a=1 --xla_gpu_enable_triton_gemm=false',
    ),
    (None, (0, 11, 2), '--a=1', '--a=1'),  # no GPU
    ('jax_cuda13_plugin', (0, 13, 0), '--a=1', '--a=1'),  # may not know it
    (
      'jax_cuda13_plugin',
      (0, 11, 2),
      '--xla_gpu_enable_triton_gemm=true',
      '--xla_gpu_enable_triton_gemm=true',
    ),
  ],
)
def test_products_are_left_to_cublas(
  monkeypatch, plugin, version, flags, expected
):
  monkeypatch.setenv('XLA_FLAGS', flags)
  monkeypatch.setattr(jax, '__version_info__', version)
  monkeypatch.setattr(
    runtime.importlib.util,
    'find_spec',
    lambda name: object() if name == plugin else None,
  )
  runtime._leave_products_to_cublas()
  assert os.environ['XLA_FLAGS'] == expected

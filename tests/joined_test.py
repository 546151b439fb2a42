"""Runs that two processes make together, against runs of one."""

import json
import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
import pytest
import small_runs
import together
from small_runs import ROOT, SMALL

import launch
from jaxclust import links, processes, workdir
from jaxclust.errors import InputError

FLAGS = [f'--config={ROOT}/configs/ae_kmeans.py:digits', *SMALL['ae_kmeans']]

# Targets, clusters that a stage starts from, a loss that is validated, and a
# clusterer; of two seeds, from images that are streamed.
CONFIG = """
from jaxclust import defaults

def get_config():
  config = defaults.pipeline('digits', ('autoencoder', 'dec'), clusterer='gmm')
  config.num_seeds = 2
  config.network = {'name': 'mlp', 'features': (16, 5)}
  config.training.update(num_epochs=2, batch_size=66, patience=2, noise=0.1)
  config.training.placement = 'host'
  config.dec = {
    'num_clusters': 4, 'num_restarts': 2, 'divergence': 1.0,
    'reconstruction': 0.0, 'num_epochs': 2, 'patience': 0,
  }
  config.gmm = {
    'num_components': 4, 'covariance': 'full', 'num_restarts': 1,
    'init': 'k-means', 'max_steps': 50, 'tol': 1e-4, 'reg': 1e-3,
  }
  return config
"""

# Epochs of a run that is stopped in one of them.
_EPOCHS = 60


def started(path, *flags, own=((), ()), env=None):
  """Two processes of two devices that begin a run, each with flags of its
  own."""
  port = together.free_port()
  devices = '--xla_force_host_platform_device_count=2'
  shared = dict(os.environ, XLA_FLAGS=devices)
  commands, envs = [], []
  for number in range(2):
    command = [sys.executable, ROOT / 'launch.py', f'--workdir={path}', *flags]
    if env is None:
      command += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2']
      command += [f'--process_id={number}']
    envs.append(shared | (env(number, port) if env else {}))
    commands.append([*command, *own[number]])
  return together.start(commands, envs)


def by_slurm(number, port):
  """Variables that SLURM sets for a process."""
  return {
    'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': '127.0.0.1',
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_PROCID': str(number),
    'SLURM_LOCALID': str(number),
    'JAX_COORDINATOR_PORT': str(port),
  }


def lines(said):
  """Lines that are errors of a run."""
  return [x for x in said.splitlines() if x.startswith('error:')]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
  (tmp_path / 'config.py').write_text(CONFIG)
  flag, one, two = (
    f'--config={tmp_path}/config.py',
    tmp_path / '1',
    tmp_path / '2',
  )
  statuses, said = together.wait(started(two, flag, env=by_slurm))
  assert statuses == [0, 0], said
  assert launch.main(['launch.py', flag, f'--workdir={one}']) == 0
  own, other = (small_runs.read(path) for path in (two, one))
  assert own['device'].endswith('of 2 processes')
  for score in ('acc', 'nmi', 'ari'):
    assert own['train'][score] == pytest.approx(other['train'][score], abs=1e-3)
  for name in ('model.npz', 'model-1.npz'):
    with np.load(two / name) as mine, np.load(one / name) as wanted:
      for place in wanted:
        if place.startswith(('params', 'clusters')):
          np.testing.assert_allclose(
            mine[place], wanted[place], rtol=1e-3, atol=1e-3, err_msg=place
          )


def wait_for_epochs(path, epoch):
  """Waits until a run is beyond an epoch."""
  deadline = time.monotonic() + 100
  while not any(r['epoch'] > epoch for r in epochs(path)):
    assert time.monotonic() < deadline
    time.sleep(0.1)


def epochs(path):
  return workdir.read_log(path, phase='autoencoder')


@pytest.mark.slow
def test_processes_end_together_and_the_run_goes_on_with_another_number(
  tmp_path, capsys
):
  path = tmp_path / 'run'
  flags = [*FLAGS, f'--config.training.num_epochs={_EPOCHS}']
  running = started(path, *flags)
  wait_for_epochs(path, 1)
  running[1].send_signal(signal.SIGTERM)
  statuses, said = together.wait(running)
  assert statuses == [143, 143], said
  assert lines(said[0]) == ['error: stopped by SIGTERM']
  assert not lines(said[1])
  saved = epochs(path)

  for killed, other in ((0, 1), (1, 0)):
    running = started(path, *flags)
    wait_for_epochs(path, epochs(path)[-1]['epoch'])
    running[killed].kill()
    statuses, said = together.wait(running)
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[other] == 3, said
    (line,) = lines(said[other])
    assert f'process {killed} is gone' in line
    assert 'Traceback' not in said[other]

  assert launch.main(['launch.py', *flags, f'--workdir={path}']) == 0
  out = capsys.readouterr().out
  assert 'computed with 4 of cpu (cpu) of 2 processes' in out
  assert [r['epoch'] for r in epochs(path)] == list(range(1, _EPOCHS + 1))
  assert epochs(path)[: len(saved)] == saved  # which were not made again


@pytest.mark.slow
@pytest.mark.parametrize(
  ('own', 'error'),
  [
    (
      ((), (f'--config.data.name={ROOT}/nowhere.npz',)),
      f'error: process 1: {ROOT}/nowhere.npz does not exist',
    ),
    (
      ((), ('--config.seed=1',)),
      'error: process 1: config, images or versions of process 1 differ',
    ),
  ],
)
def test_an_error_of_one_is_that_of_all(own, error, tmp_path):
  statuses, said = together.wait(started(tmp_path / 'run', *FLAGS, own=own))
  assert statuses == [2, 2], said
  (line,) = lines(said[0])
  assert line.startswith(error)
  assert not lines(said[1])


def test_who_does_not_know_the_token_is_no_process(monkeypatch):
  monkeypatch.setattr(links._open, 'files', {})
  monkeypatch.setattr(links, '_listen', lambda hear: None)
  server, place = links.serve('127.0.0.1')
  accepting = threading.Thread(
    target=links.accept, args=(server, place['token'], 2)
  )
  accepting.start()
  address = '127.0.0.1', place['port']
  for text in (b'GET / HTTP/1.1\n', b'\xff\n'):
    with socket.create_connection(address, 10) as stranger:
      stranger.sendall(text)
      assert not stranger.recv(1)
  with socket.create_connection(address, 10) as other:
    other.sendall(f'{place["token"]} 1\n'.encode())
    accepting.join(10)
    (file,) = links._open.files.values()
    file.close()


@pytest.mark.parametrize(
  'named',
  [('127.0.0.1:1', None, None), (None, 2, 0), ('127.0.0.1:1', 2, None)],
)
def test_processes_are_named_in_full(named):
  with pytest.raises(InputError, match='together, or by none'):
    processes.join(*named)


def test_what_cannot_be_joined_is_named():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    for named, error in [
      (('127.0.0.1', 2, 0), 'must be HOST:PORT'),
      (('127.0.0.1:0', 2, 0), 'must be HOST:PORT'),
      (('127.0.0.1:9876', 2, 2), 'must be from 0 to 1'),
      ((f'127.0.0.1:{port}', 2, 0), f'port {port} .* cannot be used'),
    ]:
      with pytest.raises(InputError, match=error):
        processes.join(*named)


@pytest.mark.slow
def test_a_process_does_not_wait_for_ever(tmp_path):
  code = (
    'from jaxclust import processes\n'
    'processes._SECONDS_TO_MEET = 1\n'
    f'processes.join("127.0.0.1:{together.free_port()}", 2, 1)'
  )
  statuses, said = together.wait(
    together.start([[sys.executable, '-c', code]], [None])
  )
  assert statuses == [2]
  assert lines(said[0]) == [said[0].strip()]
  assert 'are not there after 1 seconds' in said[0]


def test_a_process_alone_does_all_itself():
  x = jax.numpy.arange(6.0).reshape(3, 2)
  assert processes.same(x) is x
  assert processes.most(3) == 3
  assert processes.share_rows(x) == (x, None)
  np.testing.assert_array_equal(processes.by_shares(lambda x: 2 * x, x), 2 * x)


@pytest.mark.parametrize(('num_rows', 'count'), [(5, 4), (8, 2), (3, 3)])
def test_shares_of_processes_are_all_rows_once(num_rows, count, monkeypatch):
  x = np.arange(2.0 * num_rows).reshape(num_rows, 2)
  monkeypatch.setattr(processes, 'are_several', lambda: True)
  monkeypatch.setattr(jax, 'process_count', lambda: count)
  numbers, parts = iter(range(count)), []
  monkeypatch.setattr(jax, 'process_index', lambda: next(numbers))

  def gather(own, how):
    parts.append(own)
    return np.stack([*parts, *[own] * (count - len(parts))])

  monkeypatch.setattr(processes, '_gather', gather)
  for _ in range(count):
    found = processes.by_shares(lambda x: x, x)
  np.testing.assert_array_equal(found, x)


@pytest.mark.slow
@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity'), reason='no one tells how many'
)
def test_a_process_alone_has_all_cores(tmp_path):
  """JAX does not work before it has been told of them."""
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  flags = ['--config.training.num_epochs=1', f'--workdir={tmp_path}/run']
  command = [sys.executable, ROOT / 'launch.py', *FLAGS, *flags]
  statuses, said = together.wait(together.start([command], [env]))
  assert statuses == [0], said
  (manifest,) = (tmp_path / 'run/checkpoints/autoencoder').glob('*.json')
  cores = len(os.sched_getaffinity(0))
  told = json.loads(manifest.read_text())['devices']
  assert told == f'{cores} of cpu (cpu)'


@pytest.mark.slow
@pytest.mark.parametrize('asked', [(1,), (0, 1)])
def test_a_signal_at_any_time_ends_all(asked, tmp_path):
  """While process 0 scores, and the other one waits for it."""
  running = started(tmp_path / 'run', *FLAGS)
  deadline = time.monotonic() + 100
  while not (tmp_path / 'run/model.npz').exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  for number in asked:
    running[number].send_signal(signal.SIGTERM)
  statuses, said = together.wait(running)
  assert statuses == [143, 143], said
  assert [len(lines(text)) for text in said] == [1, 0]

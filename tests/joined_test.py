"""Runs that two processes make together, against runs of one."""

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

from jaxclust import links, processes, workdir
from jaxclust.errors import InputError

FLAGS = SMALL['ae_kmeans']

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
    command = [sys.executable, ROOT / 'launch.py', f'--workdir={path}']
    command += [f'--config={ROOT}/configs/ae_kmeans.py:digits', *FLAGS, *flags]
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
def test_two_processes_find_what_one_finds(finished, tmp_path):
  statuses, said = together.wait(started(tmp_path / 'run', env=by_slurm))
  assert statuses == [0, 0], said
  one, two = finished('ae_kmeans').path, tmp_path / 'run'
  own, other = (small_runs.read(path) for path in (two, one))
  assert own['device'].endswith('of 2 processes')
  assert own['train']['acc'] == other['train']['acc']
  for name in ('model.npz', 'assignments.npz'):
    with np.load(two / name) as mine, np.load(one / name) as wanted:
      places = [n for n in wanted if n.startswith(('params', 'clusters'))]
      for place in [*places, *(n for n in wanted if 'labels' in n)]:
        np.testing.assert_allclose(mine[place], wanted[place], atol=1e-4)


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
  path, flag = tmp_path / 'run', f'--config.training.num_epochs={_EPOCHS}'
  running = started(path, flag)
  wait_for_epochs(path, 1)
  running[1].send_signal(signal.SIGTERM)
  statuses, said = together.wait(running)
  assert statuses == [143, 143], said
  assert lines(said[0]) == ['error: stopped by SIGTERM']
  assert not lines(said[1])
  saved = epochs(path)[-1]['epoch']

  running = started(path, flag)
  wait_for_epochs(path, saved)
  running[0].kill()
  statuses, said = together.wait(running)
  assert statuses == [-signal.SIGKILL, 3], said
  assert len(lines(said[1])) == 1
  assert 'process 0 is gone' in said[1]

  assert small_runs.run('ae_kmeans', path, *FLAGS, flag) == 0
  out = capsys.readouterr().out
  assert 'computed with 4 of cpu (cpu) of 2 processes' in out
  assert [r['epoch'] for r in epochs(path)] == list(range(1, _EPOCHS + 1))


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
  statuses, said = together.wait(started(tmp_path / 'run', own=own))
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
    with socket.create_connection(address) as stranger:
      stranger.sendall(text)
      assert not stranger.recv(1)
  with socket.create_connection(address) as other:
    other.sendall(f'{place["token"]} 1\n'.encode())
    accepting.join()
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

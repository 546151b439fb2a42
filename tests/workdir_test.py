"""The run directory."""

import errno
import fcntl
import json
import os
import pathlib

import pytest

from jaxclust import workdir
from jaxclust.errors import InputError


def read(path):
  return json.loads(path.read_text())


def test_a_directory_belongs_to_one_config(tmp_path):
  config = {'seed': 0, 'gmm': {'reg': 1e-3, 'shape': (1, 2)}}
  with workdir.claim(tmp_path / 'run', config) as path:
    assert read(path / 'config.json')['gmm']['shape'] == [1, 2]
  with workdir.claim(tmp_path / 'run', config):
    pass
  other = {'seed': 1, 'gmm': {'reg': 1e-2, 'shape': (1, 2)}}
  with (
    pytest.raises(InputError, match=r'differs in gmm\.reg, seed'),
    workdir.claim(tmp_path / 'run', other),
  ):
    pass
  with pytest.raises(InputError, match=r'differs in gmm\.reg, seed'):
    workdir.check(tmp_path / 'run', other)


@pytest.mark.parametrize(
  ('old', 'new', 'keys'),
  [
    ({'a': {}}, {}, 'a'),
    ({}, {'a': {}, 'b': {'c': {}}}, 'a, b'),
    ({'b': {'c': {}}}, {'b': {}}, r'b\.c'),
    ({'a': None}, {}, 'a'),
    ({'a': {'b': 1}}, {'a': 1}, 'a'),
  ],
)
def test_a_key_that_one_config_lacks_is_named(old, new, keys, tmp_path):
  workdir.write_json(tmp_path, 'config.json', old)
  with pytest.raises(InputError, match=f'which differs in {keys}: name '):
    workdir.check(tmp_path, new)


@pytest.mark.parametrize('content', ['', '[1]', '{"seed": 0', '[' * 100_000])
def test_a_damaged_config_is_named(content, tmp_path):
  (tmp_path / 'config.json').write_text(content)
  for look in (workdir.check, lambda *args: workdir.claim(*args).__enter__()):
    with pytest.raises(InputError, match=r'config\.json cannot be read'):
      look(tmp_path, {})
  assert (tmp_path / 'config.json').read_text() == content


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path):
  with (
    workdir.claim(tmp_path, {}),
    pytest.raises(InputError, match=f'in use by process {os.getpid()} on '),
    workdir.claim(tmp_path, {}),
  ):
    pass
  with workdir.claim(tmp_path, {}):
    pass


def test_a_process_that_has_ended_holds_no_lock(tmp_path):
  (tmp_path / '.lock').write_text('1234567 on another, and more')
  with workdir.claim(tmp_path, {}):
    assert (tmp_path / '.lock').read_text().startswith(f'{os.getpid()} on ')


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch):
  def flock(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with (
    pytest.warns(UserWarning, match='cannot be locked .*no second run'),
    workdir.claim(tmp_path, {}),
  ):
    pass


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(InputError, match='cannot be written'):
      workdir.check(path, {})
    with (
      pytest.raises(InputError, match='cannot be written'),
      workdir.claim(path, {}),
    ):
      pass
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.skipif(
  not pathlib.Path('/proc/self').is_dir(), reason='not on Linux'
)
@pytest.mark.parametrize('name', ['/proc/run', '/proc/self'])
def test_a_directory_that_cannot_be_written_is_named(name):
  """/proc is not writable for root either."""
  with (
    pytest.raises(InputError, match=f'workdir {name} cannot be written'),
    workdir.claim(name, {}),
  ):
    pass


def test_a_check_finds_a_read_only_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda place, mode: place != tmp_path)
  with pytest.raises(InputError, match='is read-only'):
    workdir.check(tmp_path / 'a' / 'run', {})
  for name in ('config.json', 'summary.json'):
    with pytest.raises(InputError, match='is read-only'):
      workdir.check(tmp_path, {})
    workdir.write_json(tmp_path, name, {})
  assert workdir.check(tmp_path, {})


def test_a_check_writes_nothing(tmp_path):
  workdir.check(tmp_path / 'a' / 'run', {})
  assert not (tmp_path / 'a').exists()


def test_a_new_path_is_new(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  paths = set()
  for _ in range(3):
    path = workdir.new_path('gmm-digits')
    path.mkdir(parents=True)
    paths.add(path)
  assert len(paths) == 3


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
  workdir.write_json(tmp_path, 'a.json', {'a': 1})
  with pytest.raises(ValueError, match='JSON'):
    workdir.write_json(tmp_path, 'a.json', {'a': float('nan')})
  assert read(tmp_path / 'a.json') == {'a': 1}


def test_the_log_is_rewound_to_a_checkpoint(tmp_path):
  for epoch in (1, 2, 3):
    workdir.log(tmp_path, phase='autoencoder', epoch=epoch)
    workdir.log(tmp_path, phase='gmm', step=10 * epoch)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"phase": "autoenc')  # killed while writing
  workdir.rewind_log(tmp_path, 'epoch', 2, phase='autoencoder')
  records = workdir.read_log(tmp_path, phase='autoencoder')
  assert [r['epoch'] for r in records] == [1, 2]
  records = workdir.read_log(tmp_path, phase='gmm')
  assert [r['step'] for r in records] == [10, 20, 30]


@pytest.mark.parametrize(
  'line', [b'', b'{"epoch": 2', b'[2]', b'\0\0', b'\xff', b'[' * 100_000]
)
def test_lines_of_the_log_that_are_not_records_are_skipped(line, tmp_path):
  workdir.log(tmp_path, epoch=1)
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(line + b'\n')
  workdir.log(tmp_path, epoch=3)
  assert [r['epoch'] for r in workdir.read_log(tmp_path)] == [1, 3]


def test_the_log_of_errors_keeps_them_all(tmp_path):
  for number in (1, 2):
    try:
      raise KeyError(number)
    except KeyError as error:
      path = workdir.log_error(tmp_path, error)
  assert path == tmp_path / 'error.log'
  assert path.read_text().count('Traceback (most recent call last)') == 2
  assert 'KeyError: 2' in path.read_text()


def test_the_log_of_a_seed_is_its_own(tmp_path):
  for seed in (0, 1):
    for step in (5, 10):
      workdir.log(tmp_path, phase='gmm', seed=seed, step=step)
  workdir.rewind_log(tmp_path, 'step', 5, phase='gmm', seed=1)
  found = {
    seed: [
      r['step'] for r in workdir.read_log(tmp_path, phase='gmm', seed=seed)
    ]
    for seed in (0, 1)
  }
  assert found == {0: [5, 10], 1: [5]}


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert not workdir.check('~/run', {})
  with workdir.claim('~/run', {}) as path:
    assert path == tmp_path / 'run'
  with pytest.raises(InputError, match='names a home that does not exist'):
    workdir.check('~nobody-of-that-name/run', {})

"""The run directory."""

import errno
import fcntl
import json
import os
import pathlib
import resource
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import workdir
from jaxclust.numerics import InputError


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


def test_a_lock_of_a_process_that_has_ended_is_none(tmp_path):
  (tmp_path / '.lock').write_text('1234567 on another, and more')
  with workdir.claim(tmp_path, {}):
    assert (tmp_path / '.lock').read_text().startswith(f'{os.getpid()} on ')


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
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
  """Not even by an administrator."""
  with (
    pytest.raises(InputError, match=f'workdir {name} cannot be written'),
    workdir.claim(name, {}),
  ):
    pass


def test_a_read_only_directory_is_seen_before_anything_is_done(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(os, 'access', lambda place, mode: place != tmp_path)
  with pytest.raises(InputError, match='is read-only'):
    workdir.check(tmp_path / 'a' / 'run', {})
  for name in ('config.json', 'summary.json'):
    with pytest.raises(InputError, match='is read-only'):
      workdir.check(tmp_path, {})
    workdir.write_json(tmp_path, name, {})
  assert workdir.check(tmp_path, {})


def test_a_look_leaves_no_trace(tmp_path):
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
def test_what_is_no_record_of_the_log_is_left_out(line, tmp_path):
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


STATE = {'a': jnp.arange(3.0), 'b': (jnp.int32(7), jnp.ones((2, 40)))}


def save(path, *steps):
  """Saves a state for each step, of which the step is a part."""
  for step in steps:
    workdir.save(path, 'gmm', step, STATE | {'a': STATE['a'] + step})


def restore(path):
  step, state = workdir.restore(path, 'gmm', STATE)
  np.testing.assert_array_equal(state['a'], np.arange(3) + step)
  return step


def test_the_newest_checkpoint_comes_back(tmp_path):
  assert workdir.restore(tmp_path, 'gmm', STATE) is None
  save(tmp_path, 1, 5, 9)
  step, restored = workdir.restore(
    tmp_path, 'gmm', jax.eval_shape(lambda: STATE)
  )
  assert step == 9
  np.testing.assert_array_equal(restored['a'], [9, 10, 11])
  assert restored['b'][0].dtype == jnp.int32
  kept = sorted(p.name for p in (tmp_path / 'checkpoints' / 'gmm').iterdir())
  assert kept == ['5', '5.json', '9', '9.json']


def largest_file(folder):
  files = [file for file in folder.rglob('*') if file.is_file()]
  return max(files, key=lambda file: file.stat().st_size)


def truncate(folder):
  file = largest_file(folder)
  file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(folder):
  file = largest_file(folder)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def lose_a_file(folder):
  largest_file(folder).unlink()


def add_a_file(folder):
  (folder / 'more').write_text('foreign')


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def lose_the_manifest(folder):
  folder.with_suffix('.json').unlink()


def truncate_the_manifest(folder):
  manifest = folder.with_suffix('.json')
  manifest.write_text(manifest.read_text()[:-9])


def rewrite_the_manifest(old, new, folder):
  manifest = folder.with_suffix('.json')
  assert old in manifest.read_text()
  manifest.write_text(manifest.read_text().replace(old, new))


def keep_only_the_manifest(folder):
  shutil.rmtree(folder)


@pytest.mark.parametrize(
  ('damage', 'told'),
  [
    (truncate, 'is damaged'),
    (flip_a_bit, 'is damaged'),
    (lose_a_file, 'is missing'),
    (add_a_file, 'more is foreign'),
    (empty, 'is missing'),
    (lose_the_manifest, 'manifest is missing'),
    (truncate_the_manifest, 'or is damaged'),
    (partial(rewrite_the_manifest, 'float32', 'float22'), 'or is damaged'),
    (partial(rewrite_the_manifest, '"arrays"', '"brrays"'), 'or is damaged'),
    (
      partial(rewrite_the_manifest, 'format": 1', 'format": 3'),
      'or is damaged',
    ),
    (keep_only_the_manifest, 'is missing'),
  ],
)
def test_a_damaged_checkpoint_is_set_aside(damage, told, tmp_path):
  save(tmp_path, 5, 9)
  folder = tmp_path / 'checkpoints' / 'gmm'
  damage(folder / '9')
  with pytest.warns(UserWarning, match=f'9 is set aside as .*{told}'):
    assert restore(tmp_path) == 5
  assert (folder / '9-set-aside-1').is_dir()
  assert restore(tmp_path) == 5  # without a word
  save(tmp_path, 9)
  assert restore(tmp_path) == 9


def forge(path, **changed):
  """Gives the step 9 another manifest, which is whole."""
  file = path / 'checkpoints' / 'gmm' / '9.json'
  manifest = read(file) | changed
  manifest['digest'] = workdir._digest_of(manifest)
  file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  ('changed', 'told'),
  [
    ({'files': ['a']}, r"its field files is \['a'\]"),
    ({'arrays': None}, 'its field arrays is None'),
    ({'format': '1'}, "its field format is '1'"),
    ({'files': {'../../../config.json': [1, 'a']}}, 'is missing'),
  ],
)
def test_a_manifest_of_a_stranger_is_set_aside(changed, told, tmp_path):
  save(tmp_path, 5, 9)
  forge(tmp_path, **changed)
  with pytest.warns(UserWarning, match=f'9 is set aside as .*{told}'):
    assert restore(tmp_path) == 5


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, shutil.rmtree])
def test_what_orbax_cannot_read_is_set_aside(damage, tmp_path):
  save(tmp_path, 5, 9)
  folder = tmp_path / 'checkpoints' / 'gmm' / '9'
  damage(folder)
  forge(tmp_path, files=workdir._digests(folder))
  with pytest.warns(UserWarning, match='set aside .*Orbax cannot read it'):
    assert restore(tmp_path) == 5


def test_where_all_are_damaged_there_is_none(tmp_path):
  save(tmp_path, 5, 9)
  for step in ('5', '9'):
    flip_a_bit(tmp_path / 'checkpoints' / 'gmm' / step)
  with pytest.warns(UserWarning, match='set aside') as seen:
    assert workdir.restore(tmp_path, 'gmm', STATE) is None
  assert len(seen) == 2


def test_what_is_no_step_is_left_alone_but_for_rests_of_a_save(tmp_path):
  save(tmp_path, 5)
  folder = tmp_path / 'checkpoints' / 'gmm'
  foreign, rest = folder / 'notes', folder / '9.orbax-checkpoint-tmp-17'
  foreign.mkdir()
  rest.mkdir()
  assert restore(tmp_path) == 5
  save(tmp_path, 9)
  assert restore(tmp_path) == 9
  assert foreign.is_dir()
  assert not rest.exists()


@pytest.mark.parametrize('left', ['folder', 'manifest'])
def test_what_a_killed_run_left_of_an_old_step_is_removed(left, tmp_path):
  save(tmp_path, 5, 9)
  folder = tmp_path / 'checkpoints' / 'gmm'
  if left == 'folder':
    (folder / '5.json').unlink()
  else:
    shutil.rmtree(folder / '5')
  assert restore(tmp_path) == 9
  save(tmp_path, 12, 15)
  assert restore(tmp_path) == 15
  kept = sorted(p.name for p in folder.iterdir())
  assert kept == ['12', '12.json', '15', '15.json']


def test_a_save_that_dies_leaves_the_step_before(tmp_path, monkeypatch):
  save(tmp_path, 5)

  def die(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(workdir, 'write_json', die)
    with pytest.raises(KeyboardInterrupt):
      save(tmp_path, 9)
  with pytest.warns(
    UserWarning, match='9 is set aside as .*manifest is missing'
  ):
    assert restore(tmp_path) == 5


def test_a_full_disk_leaves_the_step_before_and_no_rests(tmp_path):
  save(tmp_path, 5)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
  try:
    with pytest.raises(OSError, match='File too large') as caught:
      save(tmp_path, 9)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert caught.value.errno == errno.EFBIG
  kept = sorted(p.name for p in (tmp_path / 'checkpoints' / 'gmm').iterdir())
  assert kept == ['5', '5.json']
  assert restore(tmp_path) == 5


def test_a_resume_on_other_devices_warns(tmp_path, monkeypatch):
  save(tmp_path, 5)
  monkeypatch.setattr(workdir, '_devices', lambda: '8 of gpu (H100)')
  told = r'goes on with 8 of gpu \(H100\) from what 2 of cpu \(cpu\)'
  with pytest.warns(UserWarning, match=told):
    assert restore(tmp_path) == 5


@pytest.mark.parametrize(
  ('like', 'told'),
  [
    (STATE | {'a': jnp.arange(3)}, r"'float32'\] at \['a'\].*'int32'"),
    (STATE | {'a': jnp.arange(4.0)}, r'\[\[3\].*needs \[\[4\]'),
    (STATE | {'c': jnp.arange(4.0)}, r'holds None at \[\'c\'\]'),
  ],
)
def test_other_arrays_are_an_error_and_no_cast(like, told, tmp_path):
  save(tmp_path, 5)
  with pytest.raises(InputError, match=told):
    workdir.restore(tmp_path, 'gmm', like)
  assert restore(tmp_path) == 5


def test_another_format_is_an_error_with_both_versions(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(workdir, '_FORMAT', 7)
    save(tmp_path, 5)
  with pytest.raises(InputError, match=r'has format 7.* reads format 1'):
    workdir.restore(tmp_path, 'gmm', STATE)

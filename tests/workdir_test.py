"""The run directory."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import workdir
from jaxclust.numerics import InputError


def test_a_directory_belongs_to_one_config(tmp_path):
  config = {'seed': 0, 'gmm': {'reg': 1e-3, 'shape': (1, 2)}}
  with workdir.claim(tmp_path / 'run', config) as path:
    assert workdir.read_json(path, 'config.json')['gmm']['shape'] == [1, 2]
  with workdir.claim(tmp_path / 'run', config):
    pass
  other = {'seed': 1, 'gmm': {'reg': 1e-2, 'shape': (1, 2)}}
  with (
    pytest.raises(InputError, match=r'differs in gmm\.reg, seed'),
    workdir.claim(tmp_path / 'run', other),
  ):
    pass


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path):
  with (
    workdir.claim(tmp_path, {}),
    pytest.raises(InputError, match='in use by another run'),
    workdir.claim(tmp_path, {}),
  ):
    pass
  with workdir.claim(tmp_path, {}):
    pass


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / 'run').write_text('mine')
  with (
    pytest.raises(InputError, match='cannot be written'),
    workdir.claim(tmp_path / 'run', {}),
  ):
    pass
  assert (tmp_path / 'run').read_text() == 'mine'


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
  assert workdir.read_json(tmp_path, 'a.json') == {'a': 1}
  assert workdir.read_json(tmp_path, 'b.json') is None


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

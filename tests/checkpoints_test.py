"""Checkpoints of a run."""

import errno
import json
import resource
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import checkpoints, workdir
from jaxclust.errors import InputError

STATE = {'a': jnp.arange(3.0), 'b': (jnp.int32(7), jnp.ones((2, 40)))}


def save(path, *steps):
  """Saves a state for each step, with the step added to one array."""
  for step in steps:
    checkpoints.save(path, 'gmm', step, STATE | {'a': STATE['a'] + step})


def restore(path):
  step, state = checkpoints.restore(path, 'gmm', STATE)
  np.testing.assert_array_equal(state['a'], np.arange(3) + step)
  return step


def test_the_newest_checkpoint_comes_back(tmp_path):
  assert checkpoints.restore(tmp_path, 'gmm', STATE) is None
  save(tmp_path, 1, 5, 9)
  step, restored = checkpoints.restore(
    tmp_path, 'gmm', jax.eval_shape(lambda: STATE)
  )
  assert step == 9
  np.testing.assert_array_equal(restored['a'], [9, 10, 11])
  assert restored['b'][0].dtype == jnp.int32
  kept = sorted(p.name for p in (tmp_path / 'checkpoints' / 'gmm').iterdir())
  assert kept == ['5', '5.json', '9', '9.json']


@pytest.mark.parametrize('name', ['[a]', 'b*?', '100%25 d', '~e', 'ü#&'])
def test_a_folder_may_have_any_name(tmp_path, name):
  save(tmp_path / name, 1, 2)
  assert restore(tmp_path / name) == 2
  assert [path.name for path in tmp_path.iterdir()] == [name]


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
  assert restore(tmp_path) == 5  # without a warning
  save(tmp_path, 9)
  assert restore(tmp_path) == 9


def forge(path, **changed):
  """Changes the manifest of step 9 and gives it the right digest."""
  file = path / 'checkpoints' / 'gmm' / '9.json'
  manifest = json.loads(file.read_text()) | changed
  manifest['digest'] = checkpoints._digest_of(manifest)
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
def test_a_forged_manifest_is_set_aside(changed, told, tmp_path):
  save(tmp_path, 5, 9)
  forge(tmp_path, **changed)
  with pytest.warns(UserWarning, match=f'9 is set aside as .*{told}'):
    assert restore(tmp_path) == 5


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, shutil.rmtree])
def test_what_orbax_cannot_read_is_set_aside(damage, tmp_path):
  save(tmp_path, 5, 9)
  folder = tmp_path / 'checkpoints' / 'gmm' / '9'
  damage(folder)
  forge(tmp_path, files=checkpoints._digests(folder))
  with pytest.warns(UserWarning, match='set aside .*Orbax cannot read it'):
    assert restore(tmp_path) == 5


def test_if_all_are_damaged_nothing_is_restored(tmp_path):
  save(tmp_path, 5, 9)
  for step in ('5', '9'):
    flip_a_bit(tmp_path / 'checkpoints' / 'gmm' / step)
  with pytest.warns(UserWarning, match='set aside') as seen:
    assert checkpoints.restore(tmp_path, 'gmm', STATE) is None
  assert len(seen) == 2


def test_foreign_folders_are_kept_and_unfinished_saves_removed(tmp_path):
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
def test_half_of_an_old_step_left_by_a_killed_run_is_removed(left, tmp_path):
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


def test_a_killed_save_leaves_the_step_before(tmp_path, monkeypatch):
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


def test_a_full_disk_leaves_the_step_before_and_no_partial_files(tmp_path):
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
  monkeypatch.setattr(checkpoints, '_devices', lambda: '8 of gpu (H100)')
  told = r'goes on with 8 of gpu \(H100\), but .* with 2 of cpu \(cpu\)'
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
def test_other_arrays_are_an_error_not_a_cast(like, told, tmp_path):
  save(tmp_path, 5)
  with pytest.raises(InputError, match=told):
    checkpoints.restore(tmp_path, 'gmm', like)
  assert restore(tmp_path) == 5


def test_another_format_is_an_error_with_both_versions(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, '_FORMAT', 7)
    save(tmp_path, 5)
  with pytest.raises(InputError, match=r'has format 7.* reads format 1'):
    checkpoints.restore(tmp_path, 'gmm', STATE)

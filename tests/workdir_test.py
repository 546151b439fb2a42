"""The run directory."""

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


def test_the_newest_checkpoint_comes_back(tmp_path):
  state = {'a': jnp.arange(3.0), 'b': jnp.int32(7)}
  assert workdir.restore(tmp_path, 'gmm', state) is None
  for step in (1, 5, 9):
    saved = {'a': state['a'] + step, 'b': state['b']}
    workdir.save(tmp_path, 'gmm', step, saved)
  step, restored = workdir.restore(tmp_path, 'gmm', state)
  assert step == 9
  np.testing.assert_array_equal(restored['a'], [9, 10, 11])
  assert restored['b'].dtype == jnp.int32
  kept = sorted(p.name for p in (tmp_path / 'checkpoints' / 'gmm').iterdir())
  assert kept == ['5', '9']

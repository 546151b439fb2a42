"""The examples of the README run as they stand."""

import pathlib
import re
import tomllib

import pytest

import launch

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


@pytest.mark.slow
def test_the_python_examples_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (command,) = re.findall(r'launch.py (.*--workdir=runs/digits)', README)
  command = command.replace('configs', str(ROOT / 'configs'))
  short = '--config.training.num_epochs=3'
  assert launch.main(['launch.py', *command.split(), short]) == 0
  examples = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  assert examples
  for example in examples:
    exec(compile(example, 'README.md', 'exec'), {})


def test_the_commands_name_files_and_extras_that_exist():
  for config in re.findall(r'--config=(configs/\w+\.py)', README):
    assert (ROOT / config).is_file()
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  for extra in re.findall(r'\.\[(\w+)\]', README):
    assert extra in project['optional-dependencies']


PROMISES = re.findall(r'`(\w+_test)(?: -k "?(.*?)"?)?`', README)


@pytest.mark.parametrize(('name', 'keywords'), PROMISES)
def test_what_holds_a_promise_exists(name, keywords):
  """As `pytest tests/<name>.py -k <keywords>` would find it."""
  source = (ROOT / 'tests' / f'{name}.py').read_text()
  tests = re.findall(r'(?:def|class) (test_\w+|\w+Test)\b', source)
  for keyword in keywords.split(' or '):
    assert any(keyword in test for test in tests), keyword

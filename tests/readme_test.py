"""The examples of the README run as they stand."""

import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


@pytest.mark.slow
def test_the_python_examples_run():
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


@pytest.mark.parametrize('name', re.findall(r'`(\w+_test)`', README))
def test_what_holds_a_promise_exists(name):
  assert (ROOT / 'tests' / f'{name}.py').is_file()

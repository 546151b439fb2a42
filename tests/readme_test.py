"""The README: its examples run, and what it names exists."""

import pathlib
import re
import tomllib

import pytest

import launch

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_the_python_examples_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (command,) = re.findall(r'launch.py (.*--workdir=runs/digits)', README)
  short = '--config.training.num_epochs=1'
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


(TABLE,) = re.findall(r'\| promise .*\n\|[-|]+\n((?:\|.*\n)+)', README)
PROMISES = [row.split(' | ')[:2] for row in TABLE.splitlines()]


@pytest.mark.parametrize(('promise', 'held_by'), PROMISES)
def test_each_promise_names_tests_that_exist(promise, held_by):
  """As `pytest FILES -k KEYWORDS` selects them, from each of the files."""
  commands = re.findall('`(.*?)`', held_by)
  assert commands, f'no test holds the promise {promise}'
  for command in commands:
    files, _, keywords = command.partition(' -k ')
    keywords = keywords.strip('"').lower().split(' or ')
    found = [names_of_tests(file) for file in files.split()]
    for names in found:
      assert names
      assert any(word in names for word in keywords), command
    for word in keywords:
      assert any(word in names for names in found), (command, word)


def names_of_tests(file):
  """Returns the tests of `tests/FILE.py` and their classes, one a line."""
  source = (ROOT / 'tests' / f'{file}.py').read_text().lower()
  names = re.findall(r'^ *(?:def|class) (test_\w+|\w+test)\b', source, re.M)
  return '\n'.join(names)

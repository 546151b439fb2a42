"""The README and the docs: examples run, and what they name exists."""

import pathlib
import re
import shlex
import tomllib

import pytest

import launch
from jaxclust import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
DOCS = {file.name: file.read_text() for file in (ROOT / 'docs').glob('*.md')}
PAGES = {'README.md': README, **DOCS}


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_the_python_examples_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (command,) = re.findall(r'launch.py (.*--workdir=runs/digits)', README)
  short = '--config.training.num_epochs=1'
  assert launch.main(['launch.py', *command.split(), short]) == 0
  examples = examples_of(README)
  assert examples
  for example in examples:
    exec(compile(example, 'README.md', 'exec'), {})


def examples_of(page):
  return re.findall(r'```python\n(.*?)```', page, re.DOTALL)


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
@pytest.mark.parametrize('name', DOCS)
def test_the_examples_of_the_docs_run(name):
  """Those of this package: others are not installed."""
  own = [code for code in examples_of(DOCS[name]) if 'jaxclust' in code]
  assert own
  for example in own:
    exec(compile(example, name, 'exec'), {})


def test_every_page_of_the_docs_is_named_in_the_readme():
  assert set(re.findall(r'\(docs/(\w+\.md)\)', README)) == set(DOCS)


@pytest.mark.parametrize('name', PAGES)
def test_the_commands_set_what_their_configs_have(name):
  commands = re.sub(r'\\\n *', '', PAGES[name])
  found = re.findall(r'launch\.py (--config=configs/.*)', commands)
  assert found
  for command in found:
    words = [w for w in shlex.split(command.split('`')[0]) if w[0] == '-']
    config, options = cli._parse(['launch.py', *words])
    assert config is not None
    assert options.config


def test_the_commands_name_files_and_extras_that_exist():
  for page in PAGES.values():
    for config in re.findall(r'(?:=|`)(configs/\w+\.py)', page):
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

"""The README and the docs: examples run, and what they name exists."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
from small_runs import SMALL, draw_folder

import launch
from jaxclust import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
DOCS = {file.name: file.read_text() for file in (ROOT / 'docs').glob('*.md')}
PAGES = {'README.md': README, **DOCS}


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
@pytest.mark.parametrize('name', PAGES)
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch, finished):
  """Its Python of this package, on runs that are there."""
  monkeypatch.chdir(tmp_path)
  if 'runs/digits' in PAGES[name]:
    shutil.copytree(finished('gmm').path, 'runs/digits')
  if name == 'index.md':
    follow(PAGES[name])
  for example in re.findall(r'```python\n(.*?)```', PAGES[name], re.DOTALL):
    if 'jaxclust' in example or 'runs/' in example:
      exec(compile(example, name, 'exec'), {})


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('MPLBACKEND', 'agg')
  notebook = json.loads((ROOT / 'docs' / 'notebook.ipynb').read_text())
  names = {}
  for number, cell in enumerate(notebook['cells']):
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == []
      code = ''.join(cell['source'])
      exec(compile(code, f'cell {number}', 'exec'), names)
  assert names['found'].labels.shape == (5,)
  assert (tmp_path / 'runs' / 'digits' / 'report.html').exists()


def follow(page):
  """Runs the commands of a tutorial, with short trainings."""
  for folder in ('photos', 'inbox'):
    draw_folder(pathlib.Path(folder), ('red', 'green', 'blue'), ((9, 8),))
  for line in filter(None, lines_of(page)):
    words = shlex.split(line)
    if words[0] == 'echo':
      subprocess.run(line, shell=True, check=True)
      continue
    short = ()
    if words[1] == 'run':
      short = '--config.training.min_batches=0', *SMALL['gmm']
    assert launch.main([*words, *short]) == 0


def lines_of(page):
  """The commands in the blocks of a page."""
  blocks = re.findall(r'```sh\n(.*?)```', page, re.DOTALL)
  return re.sub(r' *\\\n *', ' ', '\n'.join(blocks)).splitlines()


def test_every_page_of_the_docs_is_named_in_the_readme():
  named = set(re.findall(r'\(docs/(\w+\.md)\)', README))
  assert named == set(DOCS) - {'contributing.md'}


def test_the_commands_set_what_their_configs_have():
  count = 0
  for page in PAGES.values():
    commands = re.sub(r'\\\n *', '', page)
    for found in (
      *re.findall(r'launch\.py (--config=configs/.*)', commands),
      *re.findall(
        r'(?:^|`)jaxclust ((?:run|sweep|predict|compare) .*)', commands, re.M
      ),
    ):
      words = shlex.split(found.split('`')[0], comments=True)
      if words[0][0] == '-':
        words = [word for word in words if word[0] == '-']
      config, options = cli._parse(['launch.py', *words])
      assert config is not None
      assert options.config
      count += 1
  assert count > 10


def test_the_commands_name_files_and_extras_that_exist():
  for page in PAGES.values():
    for config in re.findall(r'(?:=|`)(configs/\w+\.py)', page):
      assert (ROOT / config).is_file()
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  for extra in re.findall(r'\.\[(\w+)\]', README):
    assert extra in project['optional-dependencies']


(TABLE,) = re.findall(
  r'\| promise .*\n\|[-|]+\n((?:\|.*\n)+)', DOCS['promises.md']
)
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

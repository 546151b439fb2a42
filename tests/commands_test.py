"""Commands in words, configs by name, and what help tells."""

import pathlib
import re

import pytest

import launch
from jaxclust import commands
from jaxclust.errors import InputError
from jaxclust.meanings import MEANINGS, meaning

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = """
from ml_collections import ConfigDict

def get_config(variant='plain'):
  return ConfigDict({'variant': variant})
"""
NAMES = sorted(file.stem for file in (ROOT / 'configs').glob('*.py'))


def told(capsys, *words):
  """What a command prints, which ends well."""
  assert launch.main(['jaxclust', *words]) == 0
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ('words', 'flags'),
  [
    ('run gmm:digits', '--config=gmm:digits'),
    ('run gmm --config.seed=3', '--config=gmm --config.seed=3'),
    (
      'run kmeans --data a/b --clusters 4 --seeds 2 --out c --debug',
      '--config=kmeans --config.data.name=a/b --config.num_seeds=2 --workdir=c '
      '--config.kmeans.num_clusters=4 --debug',
    ),
    (
      'predict r --data d',
      '--config=predict --config.run=r --config.data.name=d',
    ),
    ('sweep', '--config=sweep'),
    ('sweep --workdir runs/s', '--config=sweep --workdir runs/s'),
    (
      'predict r --data d --names n.json',
      '--config=predict --config.run=r --config.data.name=d '
      '--config.names=n.json',
    ),
    (
      'compare a b c --out d',
      "--config=compare --config.runs=('a',_'b',_'c') --workdir=d",
    ),
    ('sweep digits --out x', '--config=sweep:digits --workdir=x'),
    ('report runs/a', '--config=report --config.run=runs/a'),
    ('benchmark digits', '--config=benchmark:digits'),
  ],
)
def test_a_command_stands_for_flags(words, flags):
  expected = [flag.replace(',_', ', ') for flag in flags.split()]
  assert commands.translate(words.split()) == expected


def test_sizes_and_clusters_reach_every_option_that_counts_them():
  flags = commands.translate(['run', 'prototypes', '--size', '8', '9'])
  assert flags == ['--config=prototypes', '--config.data.size=(8, 9)']
  flags = commands.translate(['run', 'prototypes:digits', '--clusters', '7'])
  groups = ('prototypes', 'neighbors', 'self_labels')
  assert sorted(flags[1:]) == sorted(
    f'--config.{group}.num_clusters=7' for group in groups
  )
  flags = commands.translate(['run', 'gmm', '--clusters', '7'])
  assert flags[1:] == ['--config.gmm.num_components=7']
  flags = commands.translate(['run', 'committee', '--clusters', '7'])
  assert '--config.runs.edges.prototypes.num_clusters=7' in flags


@pytest.mark.parametrize(
  ('words', 'error'),
  [
    ('rum gmm', "there is no command 'rum': did you mean run?"),
    (
      'run',
      'jaxclust run needs CONFIG right after it: see jaxclust run --help',
    ),
    ('run --data x gmm', 'jaxclust run needs CONFIG right after it'),
    ('predict runs/a', 'the following arguments are required: --data'),
    ('run gmm --data=', '--data is empty: give a value, or leave it out'),
    ('run sweep --clusters 3', 'sweep has no number of clusters: leave it out'),
    ('run report --clusters 3', 'report has no number of clusters: leave it'),
    ('run gmm --cluster 3', 'there is no flag --cluster: did you mean --clus'),
    ('run gmm --size 3', 'argument --size: expected 2 arguments'),
    ('run gmm --clusters x', "argument --clusters: invalid int value: 'x'"),
    ('run gmn', "there is no config 'gmn': did you mean gmm?"),
    ('run gmm b', "'b' belongs to no flag"),
    ('--confg=gmm', 'there is no flag --confg: did you mean --config?'),
    ('', 'no experiment is named: add --config=NAME, one of ae_kmeans, ben'),
  ],
)
def test_a_mistake_in_a_command_is_one_line(words, error, capsys):
  assert launch.main(['jaxclust', *words.split()]) == 2
  message = capsys.readouterr().err
  assert error in message
  assert message.count('\n') == 1


def test_configs_are_found_here_and_beside_the_launcher(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  digits = commands.load('configs/gmm.py:digits')
  assert digits.experiment == 'cluster'
  assert commands.load('gmm:digits') == digits
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'old.py').write_text('print 1')
  assert '\nold ' in commands.listing()
  for name in ('gmm', 'mine'):
    (tmp_path / 'configs' / f'{name}.py').write_text(CONFIG)
    assert commands.load(f'configs/{name}.py').variant == 'plain'
    assert commands.load(f'{name}:other').variant == 'other'
  assert commands.load(f'{ROOT}/configs/gmm.py:digits') == digits
  with pytest.raises(InputError, match=r'did you mean configs/mine\.py\?'):
    commands.load('configs/mime.py')
  with pytest.raises(InputError, match=r'did you mean mine\?'):
    commands.load('mime')


def test_configs_are_found_in_what_is_installed(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'only.py').write_text(CONFIG)
  monkeypatch.setattr(commands, '_ROOTS', (tmp_path / 'none', tmp_path))
  assert commands.load('only').variant == 'plain'
  assert list(commands.files()) == ['only']


def test_where_there_are_no_configs_none_is_suggested(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(commands, '_ROOTS', (tmp_path,))
  for flags in (['--config=configs/gmm.py'], []):
    assert launch.main(['launch.py', *flags]) == 2
    assert 'did you mean' not in capsys.readouterr().err


def test_the_list_names_each_config_with_a_line(capsys):
  *lines, blank, times = told(capsys, 'list').splitlines()
  assert not blank
  assert times.startswith('Times are')
  cut = lines.index('Commands of their own:')
  to_run, commanded = lines[: cut - 1], lines[cut + 1 :]
  assert lines[cut - 1] == ''
  assert all(line.split()[0] in commands.COMMANDS for line in commanded)
  lines = to_run + commanded
  assert sorted(line.split()[0] for line in lines) == NAMES
  assert all(len(line) <= 120 for line in lines)
  assert all(line.endswith(('.', '?', ')')) for line in commanded)
  assert all(re.search(r'[.?] \(.*digits .*\)$', line) for line in to_run)


def test_help_tells_the_commands_and_the_configs(capsys):
  text = told(capsys, '--help')
  for name in (*commands.COMMANDS, *NAMES, '--workdir', '--config.KEY=VALUE'):
    assert name in text
  assert '--clusters K' in told(capsys, 'run', '--help')
  assert 'RUN' in told(capsys, 'predict', '-h')


@pytest.mark.parametrize('name', NAMES)
def test_help_tells_each_option_of_a_config(name, capsys):
  text = told(capsys, 'run', name, '--help')
  options = re.findall(r'^  --config\.(\S+?)=.*\n(.*)$', text, re.MULTILINE)
  assert options
  for option, line in options:
    assert line == f'      {meaning(option)}', option
    assert meaning(option), option


def test_each_meaning_is_that_of_an_option():
  options = {
    name.removeprefix('config.')
    for config in NAMES
    for name in commands.names_of(commands.load(config))
  }
  used = {n for o in options for n in (o.split('.')[-1], *_pairs(o.split('.')))}
  assert MEANINGS.keys() <= used


def _pairs(parts):
  return (f'{group}.{parts[-1]}' for group in parts[:-1])


def test_help_of_a_config_tells_the_options_of_the_command_too(capsys):
  text = told(capsys, 'run', 'gmm', '--help')
  assert '--clusters K' in text
  assert '--config.gmm.num_components' in text


def test_errors_name_options_as_they_were_typed(tmp_path, capsys):
  (tmp_path / 'config.json').write_text('{}')
  words = ['run', 'kmeans:digits', '--out', str(tmp_path)]
  assert launch.main(['jaxclust', *words]) == 2
  assert 'name another with --out DIR' in capsys.readouterr().err
  flags = ['--config=kmeans:digits', f'--workdir={tmp_path}']
  assert launch.main(['launch.py', *flags]) == 2
  assert 'name another with --workdir=DIR' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('line', 'typed'),
  [
    ('jaxclust run gmm', True),
    ('/usr/bin/jaxclust run gmm', True),
    ('python -m jaxclust run gmm', True),
    ('python launch.py run gmm', True),
    ('python launch.py --config=gmm --workdir run', False),
  ],
)
def test_words_are_told_from_flags(line, typed):
  text = 'resize all with --config.data.size=(480, 640)'
  expected = 'resize all with --size 480 640' if typed else text
  assert commands.as_typed(text, line.split()) == expected

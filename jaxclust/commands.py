"""Commands in words, as `jaxclust run gmm --data photos/`, and configs by name.

A command becomes flags of the launcher, which stand for themselves too.
"""

import argparse
import ast
import difflib
import importlib.util
import os
import pathlib
import traceback
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from jaxclust.errors import InputError
from jaxclust.meanings import meaning

# Folders that are searched for configs: the current one, the checkout, and what
# is installed.
_PACKAGE = pathlib.Path(__file__).parent
_ROOTS = (pathlib.Path(), _PACKAGE.parent, _PACKAGE)

# What is counted by `--clusters`.
_COUNTS = ('num_clusters', 'num_components')


def load(name: str) -> ConfigDict:
  """Loads the config of `file`, `file:variant` or, by its name, `gmm:digits`.

  Raises:
    InputError: if there is no such file, or it does not return a config.
  """
  path, colon, variant = name.partition(':')
  file = _find(path)
  spec = importlib.util.spec_from_file_location('config', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if colon else [])).lock()
  except ValueError:
    raise
  except Exception as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    raise InputError(
      f'{file} gives no config ({type(error).__name__}: {error}, line '
      f'{place.lineno} of {place.filename}): it must define '
      'get_config(variant), which returns a ConfigDict'
    ) from error


def _find(path):
  """The file of a config, from its path or its name."""
  names = [path] if path.endswith('.py') else [f'configs/{path}.py']
  for place in (root / name for root in _ROOTS for name in names):
    if place.is_file():
      return place
  known = files()
  stem = pathlib.PurePath(path).stem
  near = difflib.get_close_matches(stem, known, n=1, cutoff=0)
  hint = 'name a Python file'
  if near:
    hint = f'did you mean {known[near[0]] if "/" in path else near[0]}?'
  raise InputError(f'there is no config {path!r}: {hint}')


def files() -> dict[str, str]:
  """Paths of the configs that come with the package, by name."""
  found = {}
  for root in _ROOTS:
    for file in sorted(root.glob('configs/[!_]*.py')):
      found.setdefault(file.stem, os.path.relpath(file))
  return dict(sorted(found.items()))


def names_of(config: ConfigDict, prefix: str = 'config') -> Iterator[str]:
  """Yields the names of all values and of all groups."""
  for key, value in config.items():
    yield f'{prefix}.{key}'
    if isinstance(value, ConfigDict):
      yield from names_of(value, f'{prefix}.{key}')


def describe(name: str) -> str:
  """What a config is for, and its options with their defaults and meanings."""
  path = name.partition(':')[0]
  lines = [_docstring(_find(path)), '', 'Options, with their defaults:']
  config = load(name)
  for full in names_of(config):
    value, own = config, full.removeprefix('config.')
    for key in own.split('.'):
      value = value[key]
    if not isinstance(value, ConfigDict) and 'reference.' not in own:
      lines += [f'  --{full}={value!r}', f'      {meaning(own)}'.rstrip()]
  return '\n'.join(line for line in lines if line is not None)


def _docstring(file):
  return ast.get_docstring(ast.parse(file.read_text())) or ''


def listing() -> str:
  """The configs by name, each with its line."""
  lines = {n: _docstring(_find(n)).partition('\n')[0] for n in files()}
  width = max(map(len, lines), default=0)
  return '\n'.join(f'{n:{width}}  {text}' for n, text in lines.items())


# Name -> what it does, what it is given, and the options it takes.
COMMANDS = {
  'run': ('find clusters', 'CONFIG', ('data', 'size', 'clusters', 'seeds')),
  'predict': ('find the clusters of a run in other images', 'RUN', ('data',)),
  'sweep': ('ask how many clusters there are', 'VARIANT', ('data', 'size')),
  'compare': ('show how runs differ', 'RUNS', ()),
  'report': ('draw figures and page of a run again', 'RUN', ()),
  'benchmark': ('measure speed beside other libraries', 'VARIANT', ()),
  'list': ('name the configs', '', ()),
}


# How often what a command is given may be repeated.
_NUMBERS = {
  'VARIANT': {'nargs': '?', 'default': ''},
  'RUNS': {'nargs': '+'},
}


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message):
    raise InputError(f'{message}: see {self.prog} --help')


def _parsers():
  """The parser of all commands, and that of each."""
  parser = _Parser(
    prog='jaxclust',
    description='Clusters images by what a network learns of them.',
    epilog='jaxclust run CONFIG --help tells the options of a config. '
    '--config.KEY=VALUE sets any of them, in every command.',
    add_help=False,
    allow_abbrev=False,
  )
  add = parser.add_subparsers(
    dest='command', metavar='COMMAND', required=True
  ).add_parser
  each = {}
  for name, (text, given, options) in COMMANDS.items():
    about = {'help': text, 'description': text}
    own = each[name] = add(name, **about, add_help=False, allow_abbrev=False)
    if given:
      own.add_argument('given', metavar=given, **_NUMBERS.get(given, {}))
    if 'data' in options:
      text = 'a folder of pictures, an .npz, an .npy or the name of a set'
      own.add_argument('--data', metavar='PATH', help=text)
    if 'size' in options:
      text = 'height and width that pictures are resized to'
      own.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help=text
      )
    if 'clusters' in options:
      own.add_argument('--clusters', type=int, metavar='K', help='how many')
    if 'seeds' in options:
      text = 'runs, of which mean, spread and vote are told'
      own.add_argument('--seeds', type=int, metavar='N', help=text)
    if given and name != 'report':
      text = 'the run directory; a new one under runs/ by default'
      own.add_argument('--out', metavar='DIR', help=text)
  return parser, each


def usage(command: str = '') -> str:
  """How a command is typed, or which there are."""
  parser, each = _parsers()
  return each.get(command, parser).format_help()


def translate(words: Sequence[str]) -> list[str]:
  """The flags of the launcher that a command stands for; flags of the launcher
  in it stay.

  >>> translate(['predict', 'runs/a', '--data', 'b', '--debug'])
  ['--config=predict', '--config.run=runs/a', '--config.data.name=b', '--debug']

  Raises:
    InputError: if it is no command.
  """
  if words[0] not in COMMANDS:
    (near,) = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0)
    raise InputError(f'there is no command {words[0]!r}: did you mean {near}?')
  found, rest = _parsers()[0].parse_known_args(words)
  found = vars(found)
  given, command = found.get('given', ''), found['command']
  kind = COMMANDS[command][1]
  config = command
  if kind == 'CONFIG':
    config = given
  elif kind == 'VARIANT' and given:
    config = f'{command}:{given}'
  flags = [f'--config={config}']
  if kind == 'RUNS':
    flags.append(f'--config.runs={tuple(given)}')
  if kind == 'RUN':
    flags.append(f'--config.run={given}')
  if found.get('data'):
    flags.append(f'--config.data.name={found["data"]}')
  if found.get('size'):
    flags.append(f'--config.data.size={tuple(found["size"])}')
  if found.get('clusters') is not None:
    flags += _counts(config, found['clusters'])
  if found.get('seeds') is not None:
    flags.append(f'--config.num_seeds={found["seeds"]}')
  if found.get('out'):
    flags.append(f'--workdir={found["out"]}')
  return flags + rest


def _counts(name, count):
  """Flags that set all numbers of clusters of a config."""
  names = [n for n in names_of(load(name)) if n.rpartition('.')[2] in _COUNTS]
  return [f'--{name}={count}' for name in names]

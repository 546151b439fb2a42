"""Commands in words, as `jaxclust run gmm --data photos/`, and configs by name.

A command becomes flags of the launcher, which stand for themselves too.
"""

import argparse
import ast
import difflib
import importlib.util
import itertools
import os
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxclust.errors import InputError
from jaxclust.meanings import meaning

# Folders that are searched for configs: the current one, what is installed, and
# the checkout.
_PACKAGE = pathlib.Path(__file__).parent
_ROOTS = (pathlib.Path(), _PACKAGE, _PACKAGE.parent)

# The line of a config's text that tells how long it takes.
_TIME = re.compile(r'^Takes (.+), on two cores\.$', re.MULTILINE)

# Options that `--clusters` sets, and groups that have other plans with them.
_COUNTS, _ELSEWHERE = ('num_clusters', 'num_components'), ('sweep', 'benchmark')


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


def options_of(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """Values by their names with groups, but for published scores."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      found |= (
        {} if key == 'reference' else options_of(value, f'{prefix}{key}.')
      )
    else:
      found[prefix + key] = value
  return found


def describe(name: str) -> str:
  """The text of a config, and its options with their defaults and meanings."""
  path = name.partition(':')[0]
  lines = [_docstring(_find(path)), '', 'Options, with their defaults:']
  for own, value in options_of(load(name)).items():
    lines += [f'  --config.{own}={value!r}', f'      {meaning(own)}'.rstrip()]
  return '\n'.join(lines)


def _docstring(file):
  """The text of a config; '' if it cannot be read."""
  try:
    return ast.get_docstring(ast.parse(file.read_text())) or ''
  except (SyntaxError, ValueError, OSError):
    return ''


def _line(text):
  """The first line of a config's text, and how long it takes."""
  time = _TIME.search(text)
  return text.partition('\n')[0] + (f' ({time[1]})' if time else '')


def listing() -> str:
  """The configs by name, each with its line and the time that its text tells;
  those that commands have of their own come last."""
  texts = {n: _line(_docstring(_find(n))) for n in files()}
  width = max(map(len, texts), default=0)
  lines = {n: f'{n:{width}}  {text}' for n, text in texts.items()}
  own = [lines.pop(n) for n in COMMANDS if n in lines]
  told = 'Times are those of the first run on Fashion-MNIST, two cores.'
  return '\n'.join(
    [*lines.values(), '', 'Commands of their own:', *own, '', told]
  )


# Name -> what it does, what it is given, and the options it takes.
COMMANDS = {
  'run': (
    *('find clusters', 'CONFIG'),
    ('data', 'size', 'clusters', 'seeds', 'out'),
  ),
  'predict': (
    *('find the clusters of a run in other images', 'RUN'),
    ('data', 'names', 'out'),
  ),
  'sweep': (
    *('ask how many clusters there are', 'VARIANT'),
    ('data', 'size', 'out'),
  ),
  'compare': ('show how runs differ', 'RUNS', ('out',)),
  'report': ('draw figures and page of a run again', 'RUN', ()),
  'benchmark': ('measure speed beside other libraries', 'VARIANT', ('out',)),
  'list': ('name the configs', '', ()),
}

# Option -> what the parser knows of it.
OPTIONS = {
  'data': {
    'metavar': 'PATH',
    'help': 'a folder of pictures, an .npz, an .npy or the name of a set',
  },
  'size': {
    'nargs': 2,
    'type': int,
    'metavar': ('H', 'W'),
    'help': 'height and width that pictures are resized to',
  },
  'clusters': {'type': int, 'metavar': 'K', 'help': 'how many'},
  'seeds': {
    'type': int,
    'metavar': 'N',
    'help': 'runs, of which mean, spread and vote are told',
  },
  'names': {
    'metavar': 'FILE',
    'help': 'a file of JSON with names of clusters, as the page saves them',
  },
  'out': {
    'metavar': 'DIR',
    'help': 'the run directory; a new one under runs/ by default',
  },
}

# Options that stand for one flag of the launcher.
_FLAGS = {
  'data': 'config.data.name',
  'size': 'config.data.size',
  'seeds': 'config.num_seeds',
  'names': 'config.names',
  'out': 'workdir',
}

# Flags of the launcher that an error names, and how a command has them.
_TYPED = {
  r'--workdir=': '--out ',
  r'--config\.data\.name=': '--data ',
  r'--config\.data\.size=\((\w+), (\w+)\)': r'--size \1 \2',
}

# How often what a command is given may be repeated.
_NUMBERS = {
  'VARIANT': {'nargs': '?', 'default': ''},
  'RUNS': {'nargs': '+'},
}


# How usage shows that.
_SHOWN = {'VARIANT': '[VARIANT]', 'RUNS': 'RUN RUN ...'}


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
    about['usage'] = f'jaxclust {name} {_SHOWN.get(given, given)} [OPTION ...]'
    own = each[name] = add(name, **about, add_help=False, allow_abbrev=False)
    if given:
      own.add_argument('given', metavar=given, **_NUMBERS.get(given, {}))
    for option in options:
      must = option == 'data' and given == 'RUN'  # which has no images itself
      own.add_argument(f'--{option}', required=must, **OPTIONS[option])
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
  command, *words = words
  kind = COMMANDS[command][1]
  flags = [i for i, word in enumerate(words) if word.startswith('-')]
  first = flags[0] if flags else len(words)
  if not words[:first] and kind == 'VARIANT':
    words = ['', *words]  # values of other flags are no variant
  elif not words[:first] and kind:
    raise InputError(
      f'jaxclust {command} needs {kind} right after it: see jaxclust {command} '
      '--help'
    )
  found, rest = _parsers()[0].parse_known_args([command, *words])
  found = vars(found)
  given = found.get('given', '')
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
  if found.get('size') is not None:
    found['size'] = tuple(found['size'])
  for name, flag in _FLAGS.items():
    value = found.get(name)
    if value == '':
      raise InputError(f'--{name} is empty: give a value, or leave it out')
    if value is not None:
      flags.append(f'--{flag}={value}')
  if found.get('clusters') is not None:
    flags += _counts(config, found['clusters'])
  return flags + rest


def as_typed(text: str, words: Sequence[str]) -> str:
  """A text that names flags of the launcher, in the words of a command line.

  >>> as_typed('name another with --workdir=DIR', ['jaxclust', 'run', 'gmm'])
  'name another with --out DIR'
  """
  words = itertools.dropwhile(_is_program, words)
  if next(words, None) not in COMMANDS:
    return text
  for flag, typed in _TYPED.items():
    text = re.sub(flag, typed, text)
  return text


def _is_program(word):
  name = os.path.basename(word)
  return name in ('python', '-m', 'jaxclust') or name.endswith('.py')


def _counts(name, count):
  """Flags that set all numbers of clusters of a config."""
  config = load(name)
  names = [n for n in names_of(config) if n.rpartition('.')[2] in _COUNTS]
  if not names or any(group in config for group in _ELSEWHERE):
    raise InputError(
      f'--clusters is {count}, but {name} has no number of clusters: leave it '
      'out'
    )
  return [f'--{name}={count}' for name in names]

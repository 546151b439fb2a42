"""Runs one experiment: `jaxclust run gmm:digits`, or `python launch.py
--config=configs/gmm.py:digits`.

`--config.key=value` overrides any value of the config. The same command with
the same `--workdir` continues a run that was stopped.
"""

import difflib
import functools
import importlib.metadata
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from jaxclust import commands, links, signals, terminal
from jaxclust.errors import InputError, RunError, one_line

_HELP = {'--help', '-h', '-help', '--helpshort', '--helpfull', '-?'}

# Descriptions of the types of config values.
_KINDS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  tuple: 'a tuple, as (16, 8)',
  ConfigDict: 'a group, whose values are set one by one',
}


def run() -> None:
  """Runs the command line of this process, and exits with its status."""
  with terminal.forgiving():
    _end(main(sys.argv))


def _end(status):
  """Exits; a stopped process does not wait for its devices."""
  if links.are_begun():
    links.end(status)
  if status > 128:
    sys.stdout.flush()
    os._exit(status)
  sys.exit(status)


def main(argv: Sequence[str]) -> int:
  """Runs a command line, whose first word is the program; returns a status.

  0: the run is finished, now or already before. 2: the input cannot be used.
  3: the run cannot go on, because the training diverged, the disk is full, the
  results of a benchmark differ, another process of the run is gone, or an
  unexpected error occurred. 129, 130 and 143: SIGHUP, Ctrl-C or SIGTERM stopped
  the run, which has saved its state.

  Each error is one line on stderr. `--debug` prints the traceback of an
  unexpected one before that line.
  """
  fail = functools.partial(_fail, argv)
  if sys.platform == 'win32':
    return fail('jaxclust runs on Linux and macOS: on Windows, use WSL', 2)
  try:
    config, options = _parse(argv)
  except (flags.Error, ValueError) as error:
    return fail(error, 2)
  if config is None:
    return 0
  try:
    from jaxclust import experiments, processes

    with signals.listening():
      processes.join(
        options.coordinator, options.num_processes, options.process_id
      )
      path = experiments.run(
        *(config, options.workdir, _command(argv), options.allow_upgrade)
      )
  except signals.Stopped as error:
    return fail(error, error.status)
  except InputError as error:
    return fail(error, 2)
  except RunError as error:
    if options.debug and error.__cause__:
      traceback.print_exception(error)
    return fail(error, 3)
  except Exception as error:
    if options.debug:
      traceback.print_exception(error)
    name, reason = type(error).__name__, one_line(error)
    return fail(f'unexpected {name} ({reason}): --debug shows its traceback', 3)
  page = path / 'report.html'
  print(os.path.relpath(page if page.exists() else path))
  return 0


def _fail(argv, error, status):
  text = commands.as_typed(one_line(error), argv)
  links.fail(status, text)
  print('error:', text, file=sys.stderr)
  return status


def _command(argv):
  """Returns the command line as a user types it."""
  programs = {
    'jaxclust': ['jaxclust'],
    '__main__.py': ['python', '-m', 'jaxclust'],
  }
  program = programs.get(os.path.basename(argv[0]), ['python', argv[0]])
  return shlex.join([*program, *argv[1:]])


def _parse(argv):
  """Returns the config with its overrides, and the values of all other flags.

  Both are None if argv asks for help, which is then printed.

  Raises:
    ValueError: if a flag or the config cannot be used.
  """
  first = _launcher_flags()
  words, asks = [w for w in argv[1:] if w not in _HELP], _HELP & set(argv)
  if words == ['list']:
    print(commands.listing())
    return None, None
  if words == ['--version']:
    print(importlib.metadata.version('jaxclust'))
    return None, None
  if asks and len(words) == 1 and words[0] in commands.COMMANDS:
    print(commands.usage(words[0]))
    return None, None
  command = words[0] if words and not words[0].startswith('-') else ''
  if command:
    words = commands.translate(words)
  rest = first([argv[0], *words], known_only=True)
  if asks:
    print(_help(first, command))
    return None, None
  if first.workdir == '':
    raise InputError('workdir is empty: name a directory, or leave it out')
  if first.config is None:
    raise _unnamed(rest[1:])
  config = commands.load(first.config)
  _check_names(config, rest[1:])
  second = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=second, sys_argv=rest
  )
  try:
    stray = second(rest)[1:]
  except flags.UnrecognizedFlagError as error:
    known = [*first, *commands.OPTIONS]
    near = difflib.get_close_matches(error.flagname, known)
    hint = f'did you mean --{near[0]}?' if near else 'see --help'
    raise InputError(f'there is no flag --{error.flagname}: {hint}') from error
  except flags.IllegalFlagValueError as error:
    raise _mistyped(config, error) from error
  if stray:
    raise InputError(
      f'{stray[0]!r} belongs to no flag: write --config.key=value'
    )
  return config, first


def _launcher_flags():
  """The flags of the launcher, which every config has."""
  own = flags.FlagValues()
  text = 'An experiment, as configs/gmm.py or configs/gmm.py:digits.'
  flags.DEFINE_string('config', None, text, flag_values=own)
  text = 'The run directory; a new one under runs/ by default.'
  flags.DEFINE_string('workdir', None, text, flag_values=own)
  text = 'Whether to resume a run that began with other versions of libraries.'
  flags.DEFINE_boolean('allow_upgrade', False, text, flag_values=own)
  text = 'Whether to print the traceback of an unexpected error.'
  flags.DEFINE_boolean('debug', False, text, flag_values=own)
  text = 'HOST:PORT of process 0 of several; auto lets JAX find it.'
  flags.DEFINE_string('coordinator', None, text, flag_values=own)
  text = 'How many processes work on the run together.'
  flags.DEFINE_integer('num_processes', None, text, 1, flag_values=own)
  text = 'Which of them this is, from 0.'
  flags.DEFINE_integer('process_id', None, text, 0, flag_values=own)
  return own


def _help(first, command):
  """The help of the program, or that of the config that flags name and of the
  command that was typed."""
  if first.config:
    own = [commands.usage(command)] if command else []
    return '\n'.join([*own, commands.describe(first.config)])
  return '\n'.join(
    [__doc__, commands.usage(), f'Flags:\n{first.get_help()}', 'Configs:']
    + [f'  {line}' for line in commands.listing().splitlines()]
  )


def _unnamed(arguments):
  """The error for flags that name no config."""
  for argument in arguments:
    name = argument.lstrip('-').partition('=')[0]
    if difflib.get_close_matches(name, ['config']):
      return InputError(f'there is no flag --{name}: did you mean --config?')
  known = ', '.join(commands.files()) or 'your own'
  return InputError(
    f'no experiment is named: add --config=NAME, one of {known}'
  )


def _check_names(config, arguments):
  """Checks that the config has the values that arguments override."""
  known = list(commands.names_of(config))
  for argument in arguments:
    found = re.match(r'--?(?:no)?(config\.[^=]*)', argument)
    if found and found[1] not in known:
      (near,) = difflib.get_close_matches(found[1], known, n=1, cutoff=0)
      raise InputError(f'there is no {found[1]}: did you mean {near}?')


def _mistyped(config, error):
  """Returns the error for a value of a wrong type, naming the right one."""
  found = re.match(r'flag --config\.(.*?)=(.*?): ', str(error))
  if not found:
    return error
  name, value = found.groups()
  kind = config_path.get_type(name, config)
  return InputError(
    f'config.{name} is {value!r}: it must be {_KINDS.get(kind, kind.__name__)}'
  )

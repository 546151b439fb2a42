"""Runs one experiment: `python launch.py --config=configs/gmm.py[:variant]`.

Any value of the config is overridden by `--config.key=value`. The same command
with the same `--workdir` takes up where it was stopped.
"""

import difflib
import importlib.util
import os
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

_HELP = {'--help', '-h', '-help', '--helpshort', '--helpfull', '-?'}

# What a person calls the type of a value.
_KINDS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  tuple: 'a tuple, as (16, 8)',
  ConfigDict: 'a group, whose values are set one by one',
}


def main(argv: Sequence[str]) -> int:
  """Runs the command line argv (with the program's name); returns a status.

  0: done or already finished; 2: the input cannot be used; 3: the run cannot go
  on (the training diverged, the disk is full, a peer of a benchmark did
  something else, or an error that nobody expected: see its error.log); 130 and
  143: stopped by Ctrl-C or SIGTERM, what is done has been saved.
  """
  try:
    config, workdir = _parse(argv)
  except (flags.Error, ValueError) as error:
    return _fail(error, 2)
  if config is None:
    return 0
  from jaxclust import experiments, fitting, numerics, signals

  try:
    with signals.listening():
      path = experiments.run(config, workdir, shlex.join(['python', *argv]))
  except numerics.InputError as error:
    return _fail(error, 2)
  except fitting.RunError as error:
    return _fail(error, 3)
  except signals.Stopped as error:
    return _fail(error, error.status)
  print(os.path.relpath(path))
  return 0


def _parse(argv):
  """The config with its overrides, and the run directory or None."""
  first = flags.FlagValues()
  flags.DEFINE_string(
    'config',
    None,
    'An experiment, as configs/gmm.py or configs/gmm.py:digits.',
    flag_values=first,
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'The run directory; a new one under runs/ if left out.',
    flag_values=first,
  )
  if _HELP & set(argv):
    print(f'{__doc__}\nFlags:\n{first.get_help()}')
    return None, None
  rest = first(argv, known_only=True)
  if first.workdir == '':
    raise ValueError('workdir is empty: name a directory, or leave it out')
  if first.config is None:
    raise ValueError(
      f'no experiment is named: add --config=FILE, one of {", ".join(_files())}'
    )
  config = _load(first.config)
  _check_names(config, rest[1:])
  second = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=second, sys_argv=rest
  )
  try:
    stray = second(rest)[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, ['config', 'workdir'])
    hint = f'did you mean --{near[0]}?' if near else 'see --help'
    raise ValueError(f'there is no flag --{error.flagname}: {hint}') from error
  except flags.IllegalFlagValueError as error:
    raise _mistyped(config, error) from error
  if stray:
    raise ValueError(
      f'{stray[0]!r} belongs to no flag: write --config.key=value'
    )
  return config, first.workdir


def _load(name: str) -> ConfigDict:
  """The config of `path` or `path:variant`."""
  path, colon, variant = name.partition(':')
  if not pathlib.Path(path).is_file() or not path.endswith('.py'):
    near = difflib.get_close_matches(path, _files(), n=1, cutoff=0)
    raise ValueError(f'there is no config {path!r}: did you mean {near[0]}?')
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if colon else [])).lock()
  except ValueError:
    raise
  except Exception as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    raise ValueError(
      f'{path} gives no config ({type(error).__name__}: {error}, line '
      f'{place.lineno} of {place.filename}): it must define '
      'get_config(variant), which returns a ConfigDict'
    ) from error


def _check_names(config, arguments):
  """Checks that the values that arguments override are there."""
  known = list(_names(config))
  for argument in arguments:
    found = re.match(r'--?(?:no)?(config\.[^=]*)', argument)
    if found and found[1] not in known:
      (near,) = difflib.get_close_matches(found[1], known, n=1, cutoff=0)
      raise ValueError(f'there is no {found[1]}: did you mean {near}?')


def _names(config, prefix='config'):
  """The names of all values, and of all groups of them."""
  for key, value in config.items():
    yield f'{prefix}.{key}'
    if isinstance(value, ConfigDict):
      yield from _names(value, f'{prefix}.{key}')


def _mistyped(config, error):
  """What absl tells of a value of a wrong type, told with the right one."""
  found = re.match(r'flag --(config\.(?:(.+)\.)?(\w+))=(.*?): ', str(error))
  if not found:
    return error
  name, groups, key, value = found.groups()
  for group in groups.split('.') if groups else ():
    config = config[group]
  kind = config.get_type(key)
  return ValueError(
    f'{name} is {value!r}: it must be {_KINDS.get(kind, kind.__name__)}'
  )


def _files():
  folder = pathlib.Path(__file__).parent / 'configs'
  return sorted(os.path.relpath(p) for p in folder.glob('*.py'))


def _fail(error: Exception, status: int) -> int:
  print('error:', ' '.join(str(error).split()), file=sys.stderr)
  return status


def _end(status: int) -> None:
  """Ends the process; one that was stopped does not wait for its devices, whose
  work nobody asks for any more."""
  if status > 128:
    sys.stdout.flush()
    os._exit(status)
  sys.exit(status)


if __name__ == '__main__':
  _end(main(sys.argv))

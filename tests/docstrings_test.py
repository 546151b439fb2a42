"""The examples in docstrings say what the code does."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [
  pytest.param(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts),
    marks=[pytest.mark.slow] * (path.stem == 'autoencoder'),  # it trains
  )
  for path in sorted((ROOT / 'jaxclust').rglob('*.py'))
  if '>>> ' in path.read_text()
]


@pytest.mark.usefixtures('light_compiler')
@pytest.mark.parametrize('name', MODULES)
def test_the_examples_of_a_module_hold(name):
  module = importlib.import_module(name.removesuffix('.__init__'))
  found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
  assert found.attempted
  assert not found.failed

"""What a type checker knows of the public names, and what it refuses."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Calls as in the documents, and the type of each.
TYPES = {
  'kmeans.fit(key, x, num_clusters=2)': 'KMeansResult',
  'kmeans.fit_minibatch(key, x, num_clusters=2)': 'KMeansResult',
  'kmeans.start(key, x, num_clusters=2)': 'Solution',
  'kmeans.predict(x, x)': 'Array',
  'kmeans.transform(x, x)': 'Array',
  'gmm.fit(key, x, num_components=2)': 'GMMResult',
  'gmm.fit(key, x, num_components=2).params': 'GMMParams',
  'gmm.responsibilities(params, x)': 'Array',
  'gmm.outlier_score(params, x)': 'Array',
  "jaxclust.load('runs/a')": 'Model',
  "jaxclust.load('runs/a').predict(x)": 'Array',
  "jaxclust.load('runs/a').assess(x).labels": 'ndarray',
  'jaxclust.keep_programs()': 'Path',
  'KMeans(3).fit(x)': 'KMeans',
  'KMeans(3).fit(x).predict(x)': 'ndarray',
  'MiniBatchKMeans(3).partial_fit(x)': 'MiniBatchKMeans',
  'GaussianMixture(3).fit(x)': 'GaussianMixture',
  'GaussianMixture(3).fit(x).score_samples(x)': 'ndarray',
  'ConvAutoencoder((2, 1)).fit(x)': 'ConvAutoencoder',
}

# Calls that a checker refuses, and what it says.
REFUSED = {
  'kmeans.fit(key, x, num_cluster=2)': 'did you mean "num_clusters"',
  "kmeans.fit(key, x, num_clusters='2')": 'incompatible type "str"',
  'gmm.fit(key, x)': 'Missing named argument "num_components"',
  'jaxclust.load()': 'Missing positional argument "path"',
}

HEAD = """
import jax
import numpy as np

import jaxclust
from jaxclust import gmm, kmeans
from jaxclust.estimators import ConvAutoencoder, GaussianMixture, KMeans
from jaxclust.estimators import MiniBatchKMeans

x, key = np.zeros((10, 2), np.float32), jax.random.key(0)
params = gmm.fit(key, x, num_components=2).params
"""


@pytest.fixture(scope='module')
def told(tmp_path_factory):
  """What mypy tells of each call, by its line."""
  folder = tmp_path_factory.mktemp('typed')
  calls = [*(f'reveal_type({call})' for call in TYPES), *REFUSED]
  (folder / 'use.py').write_text('\n'.join([HEAD, *calls]))
  flags = ['--strict', '--follow-imports=silent', '--no-error-summary']
  found = subprocess.run(
    [sys.executable, '-m', 'mypy', *flags, 'use.py'],
    cwd=folder,
    env={'PATH': '', 'MYPYPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not found.stderr
  lines, first = {}, len(HEAD.split('\n')) + 1
  for line in found.stdout.splitlines():
    number, text = re.fullmatch(r'use\.py:(\d+): (.*)', line).groups()
    call = calls[int(number) - first].removeprefix('reveal_type')
    lines.setdefault(call, []).append(text)
  return lines


@pytest.mark.slow
@pytest.mark.parametrize('call', TYPES)
def test_a_checker_knows_the_type(told, call):
  (text,) = told[f'({call})']
  kind = re.compile(rf'(fallback=|is ")[\w.]*\b{TYPES[call]}(\[.*)?\]?"$')
  assert kind.search(text), text


@pytest.mark.slow
@pytest.mark.parametrize('call', REFUSED)
def test_a_checker_refuses_it(told, call):
  assert any(REFUSED[call] in text for text in told[call]), told[call]

"""Finished runs on the same images: how and where they differ.

Axes: N images, S runs, K clusters.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import optimize

from jaxclust import commands, data, metrics, tables, workdir
from jaxclust.data import Dataset
from jaxclust.errors import InputError
from jaxclust.paths import as_path
from jaxclust.report import console, figures, pictures
from jaxclust.report.console import timed
from jaxclust.report.page import Section

# Experiments whose runs cluster images as they are in their data.
_COMPARED = ('cluster', 'committee')

# Streams of images between clusters that are shown, and images of each.
_STREAMS, _SHOWN = 12, 12


class Run(NamedTuple):
  """A finished run, as far as it is compared."""

  name: str
  config: ConfigDict
  summary: dict
  files: np.ndarray  # [N] names of the images of its first split
  labels: np.ndarray  # [N]
  confidence: np.ndarray  # [N]


def prepare(config: Any) -> tuple[Dataset, Callable]:
  """Reads the runs, and the images that they have clustered.

  Raises:
    InputError: if there are not two, one is not finished or has no table, or
      they have clustered different images.
  """
  if len(config.runs) < 2:
    raise InputError(
      f'config.runs is {tuple(config.runs)}: name the directories of two '
      'finished runs, or more'
    )
  paths = [as_path(path) for path in config.runs]
  if len({path.resolve() for path in paths}) < len(paths):
    raise InputError(f'config.runs is {tuple(config.runs)}: name each run once')
  names = [path.name for path in paths]
  if len(set(names)) < len(names):
    names = [str(path) for path in config.runs]
  runs = [_read(*own) for own in zip(names, paths, strict=True)]
  digests = {run.summary['dataset']['digest'] for run in runs}
  if len(digests) > 1:
    sets = ', '.join(f'{r.name}: {r.summary["dataset"]["name"]}' for r in runs)
    raise InputError(
      f'config.runs have clustered different images ({sets}): name runs on '
      'the same, of the same size'
    )
  dataset = data.load(**runs[0].config['data'])
  if {data.digest(dataset)} != digests:
    raise InputError(
      f'the images {dataset.name} changed since {paths[0]} was made: put the '
      'old ones back'
    )
  return dataset, functools.partial(_compare, runs, dataset)


def _read(name, path):
  if not workdir.is_finished(path) or not (path / tables.PARQUET).exists():
    raise InputError(
      f'{path} does not hold a finished run with {tables.PARQUET}: name one '
      'that clusters images'
    )
  config = workdir.read_config(path)
  if config['experiment'] not in _COMPARED:
    raise InputError(
      f'{path} is a {config["experiment"]} run: name runs of '
      f'{" or ".join(_COMPARED)}'
    )
  summary = workdir.parse_object((path / 'summary.json').read_bytes())
  found = tables.read(path)
  first = found['split'] == found['split'][0]
  return Run(
    name,
    config,
    summary,
    found['file'][first],
    found['cluster'][first],
    found['confidence'][first],
  )


def _compare(runs, dataset, path, seconds):
  """Tables and pictures of how the runs differ; writes differences.csv."""
  _write_differences(runs, path)
  with timed(seconds, 'figures'):
    pairs = list(itertools.combinations(runs, 2))
    agreement = [_agreement(a, b) for a, b in pairs]
    sections = [
      Section('Options', 'Those that differ.', table=_options(runs)),
      Section(
        'Scores',
        'Mean and standard deviation where a run has several seeds.',
        table=_scores(runs),
      ),
      Section(
        'Agreement',
        'The adjusted Rand index and the normalised mutual information between '
        'the clusters of two runs (those of the first seed), and the share of '
        'images that are together once clusters are matched one to one.',
        table=[
          ['', 'ARI', 'NMI', 'matched'],
          *(
            [f'{a.name} and {b.name}', *(f'{v:.4f}' for v in own.values())]
            for (a, b), own in zip(pairs, agreement, strict=True)
          ),
        ],
      ),
      *(
        _flow(runs[0], other, dataset, path / 'figures', number)
        for number, other in enumerate(runs[1:], start=1)
      ),
    ]
  for line in sections[2].table[1:]:
    console.say('{}: ARI {}, NMI {}, matched {}'.format(*line))
  found = {
    'runs': [run.name for run in runs],
    'agreement': [
      {'between': [a.name, b.name], **own}
      for (a, b), own in zip(pairs, agreement, strict=True)
    ],
  }
  return found, sections


def _write_differences(runs, path):
  """Writes the images that some run does not put where the first one does, the
  surest first."""
  differ = np.zeros(len(runs[0].labels), bool)
  for other in runs[1:]:
    _, (rows, columns) = _matched(runs[0], other)
    names = np.full(1 + other.labels.max(), -1)
    names[columns] = rows
    differ |= names[other.labels] != runs[0].labels
  sure = np.min([run.confidence for run in runs], axis=0)
  order = np.flatnonzero(differ)
  order = order[np.argsort(-sure[order], kind='stable')]
  columns = {'file': runs[0].files[order]}
  for run in runs:
    columns[f'{run.name} cluster'] = run.labels[order]
    columns[f'{run.name} confidence'] = run.confidence[order]
  tables.write_csv(path, 'differences.csv', columns)


def _options(runs):
  """A line for each option in which runs differ."""
  configs = [commands.options_of(run.config) for run in runs]
  names = sorted({name for config in configs for name in config})
  names = [n for n in names if len({str(c.get(n)) for c in configs}) > 1]
  rows = [[name, *(str(c.get(name, '-')) for c in configs)] for name in names]
  return [['', *(run.name for run in runs)], *rows]


def _scores(runs):
  means = [run.summary.get('mean', run.summary) for run in runs]
  splits = [s for s in ('train', 'test') if any(s in own for own in means)]
  columns = [
    (split, name) for split in splits for name in ('acc', 'nmi', 'ari')
  ]
  return [
    ['', *(f'{name.upper()}, {split}' for split, name in columns), 'seconds'],
    *(
      [
        run.name,
        *(console.own_score(run.summary, *column) for column in columns),
        f'{sum(run.summary["seconds"].values()):.0f}',
      ]
      for run in runs
    ),
  ]


def _agreement(a, b):
  scores = metrics.scores(a.labels, b.labels, 1 + int(b.labels.max()))
  names = {'ari': 'ari', 'nmi': 'nmi', 'matched': 'acc'}
  return {name: scores[score] for name, score in names.items()}


def _matched(a, b):
  """Counts of images by the clusters of two runs, and the one-to-one matching
  of these that has the most images."""
  table = np.zeros((1 + a.labels.max(), 1 + b.labels.max()), np.int64)
  np.add.at(table, (a.labels, b.labels), 1)
  return table, optimize.linear_sum_assignment(table, maximize=True)


def _flow(first, other, dataset, folder, number):
  """How images move between the clusters of two runs, and which ones do."""
  table, matched = _matched(first, other)
  rest = table.copy()
  rest[matched] = 0
  streams = np.argsort(-rest, axis=None, kind='stable')[:_STREAMS]
  sure = np.minimum(first.confidence, other.confidence)
  rows, titles = [], []
  for a, b in zip(*np.unravel_index(streams, rest.shape), strict=True):
    if rest[a, b]:
      own = np.flatnonzero((first.labels == a) & (other.labels == b))
      rows.append(own[np.argsort(-sure[own], kind='stable')[:_SHOWN]])
      titles.append(f'{a} to {b} ({len(own):,})')
  clusters = [str(k) for k in np.unique(first.labels)]
  charts = [
    (
      figures.confusion(
        folder / f'flow-{number}.png',
        *(first.labels, other.labels, table.shape[1], clusters),
        *(f'cluster of {other.name}', f'cluster of {first.name}'),
      ),
      f'images by the clusters of {first.name} and {other.name}',
    )
  ]
  if rows:
    (images,) = pictures.to_unit(dataset.images)
    gallery = figures.gallery(
      folder / f'streams-{number}.png', images, rows, titles
    )
    charts.append((gallery, 'images that change their cluster'))
  return Section(
    f'{first.name} and {other.name}',
    'Images by the clusters of both, matched pairs on the diagonal. Below, the '
    'largest streams between clusters that are not matched, and the images in '
    'them of which both runs are surest.',
    charts=charts,
  )

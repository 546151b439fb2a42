"""Several runs on the same images: a leaderboard of them, or one answer.

Each run has a folder of its name and its own page. What is finished stays when
the whole is stopped and goes on.

Axes: N images, S members, K clusters.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclust import (
  answers,
  checks,
  criteria,
  data,
  findings,
  model,
  pipeline,
  processes,
  records,
  reliability,
  storage,
  tables,
  workdir,
)
from jaxclust.data import Dataset, augment
from jaxclust.errors import InputError
from jaxclust.methods.committee import convene, num_clusters_of
from jaxclust.report import console, figures, maps, page
from jaxclust.report.console import timed

# Maximum number of images on which members are judged without labels.
_JUDGED = 10_000


def prepare_leaderboard(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of all runs."""
  dataset = data.load(**config.data)
  if dataset.labels is None:
    raise InputError(
      f'{dataset.name} has no labels: a leaderboard compares clusters with them'
    )
  runs = _runs(config, 'methods')
  return dataset, functools.partial(_leaderboard, runs, dataset)


def _leaderboard(runs, dataset, path, seconds):
  """Makes a run for each method, and compares them."""
  rows, seeds, labels = [], [], []
  for name, summary in _made(runs, path, seconds):
    rows.append(_row(name, summary))
    seeds += summary.get('seeds', [summary])
    labels += _labels(path / name)
  if not processes.leads():
    return {}, []
  num_clusters = 1 + max(x.max() for own in labels for x in own.values())
  scores, _ = answers.vote(dataset, labels, seeds, num_clusters)
  agreement = iter(scores['criteria']['agreement'])
  for row in rows:
    row['agreement'] = [next(agreement) for _ in row['train']['acc']]
  chart = figures.leaderboard(path / 'figures' / 'leaderboard.png', rows)
  section = page.Section(
    'Methods',
    'Mean and standard deviation over seeds. A folder of its name has the '
    'files of each method. Agreement is the mean NMI with all other seeds and '
    'methods, which needs no labels.',
    charts=[(chart, 'accuracy of the methods')],
    table=console.leaderboard(rows),
  )
  found = scores['rank_correlation']
  return {'leaderboard': rows, 'rank_correlation': found}, [section]


def _labels(path):
  """The labels of each seed of a run, by split."""
  with np.load(path / 'assignments.npz') as arrays:
    splits = [s for s in ('train', 'test') if f'{s}_labels' in arrays]
    several = 'train_seeds' in arrays
    found = [
      arrays[f'{s}_seeds'] if several else arrays[f'{s}_labels'][None]
      for s in splits
    ]
  seeds = zip(*found, strict=True)
  return [dict(zip(splits, own, strict=True)) for own in seeds]


def prepare_committee(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks the options of all members."""
  dataset = data.load(**config.data)
  maps.check_embedding(config.embedding)
  pipeline.check_spread(config, dataset)
  runs, counts = _runs(config, 'members'), {}
  for name, own in runs.items():
    if own.clusterer:
      raise InputError(
        f'config.runs.{name}.clusterer is {own.clusterer!r}: members of a '
        "committee are methods that have clusters; set it to ''"
      )
    if own.get('spread', {}).get('num_neighbors'):
      raise InputError(
        f'config.runs.{name}.spread.num_neighbors is '
        f'{own.spread.num_neighbors}: neighbours agree in the whole committee; '
        'set it to 0'
      )
    if tuple(own.data.size) != tuple(config.data.size):
      raise InputError(
        f'config.runs.{name}.data.size is {own.data.size}, but '
        f'config.data.size is {config.data.size}: give all the same'
      )
    own = pipeline.for_few(own, dataset)
    _, method = pipeline.check_stages(own, dataset)
    counts[name] = num_clusters_of(method)
  if len(set(counts.values())) != 1:
    raise InputError(
      f'config.members have {counts} clusters: give all the same number'
    )
  return dataset, functools.partial(_committee, config, runs, dataset)


def _committee(config, runs, dataset, path, seconds):
  """Makes the members' runs, and one answer of all their seeds."""
  rows, members, labels = [], [], []
  for name, summary in _made(runs, path, seconds):
    labels += _labels(path / name)
    for number, found in enumerate(summary.get('seeds', [summary])):
      splits = {s: found[s] for s in ('train', 'test') if s in found}
      rows.append({'member': f'{name} {config.seed + number}', **splits})
      members.append(storage.load(path / name, number))
  if not processes.leads():
    return {}, []
  splits = pipeline.splits_of(dataset)
  with timed(seconds, 'encode'):
    own = _convened(config, members, labels)
    points = {split: own.points(images) for split, images in splits.items()}
  with timed(seconds, 'criteria'):
    found = _criteria(runs, dataset, members, labels, points['train'])
  scores, votes = answers.vote(dataset, labels, rows, len(own.centers), found)
  own = pipeline.spread(own, points['train'], seconds)
  with timed(seconds, 'score'):
    own, judged, found = answers.judge(dataset, own, points)
  with timed(seconds, 'confidence'):
    own, judged, sureness = reliability.calibrate(own, points['train'], judged)
  with timed(seconds, 'score'):
    if dataset.labels is None:
      labels = judged['train'].labels
      found['fit'] = pipeline.silhouette(points['train'], labels, own)
    found['fit'] = reliability.told(sureness) | found.get('fit', {})
    arrays = answers.arrays_of(own, judged, points)
  storage.save(path, own)
  workdir.write_arrays(path, 'assignments.npz', **arrays, **votes)
  with timed(seconds, 'figures'):
    places = maps.locate(points, config.embedding)
    tables.write(path, dataset, own, judged, places)
    shown = findings.find(
      dataset, own, places, judged, found, reliability=sureness
    )
    sections = page.draw(shown, path / 'figures')
  return {**found, 'members': rows, 'vote': scores}, sections


def _criteria(runs, dataset, members, labels, points):
  """Scores of the members that need no labels, of some images."""
  if len(members) < 2:
    return {}
  step = -(-len(points) // _JUDGED)
  some = np.stack([own['train'][::step] for own in labels])
  cuts = np.cumsum([own.method.code_size for own in members])
  parts = np.split(np.asarray(points[::step]), cuts[:-1], axis=1)
  num_clusters = len(members[0].centers)
  return {
    'silhouette': criteria.silhouettes(parts, some, num_clusters),
    'probe': criteria.probes(parts, some),
    'steadiness': criteria.steadiness(
      members, dataset.images[::step], some, _changes_of(runs)
    ),
  }


def _changes_of(runs):
  """Names of the options of views that change something in a run's training."""
  return {
    name
    for config in runs.values()
    for stage in config.stages
    for name, value in model.stage_options(config, stage)[0].items()
    if name in augment.OPTIONS and value != augment.OPTIONS[name][0]
  }


def _convened(config, members, labels):
  """The model of a committee, whose members have found labels by split."""
  first = members[0].recipe
  recipe = model.make_recipe(config, first['image_shape']) | {
    'method': 'committee',
    'members': [own.recipe for own in members],
    'batch_size': first['batch_size'],
  }
  params = convene(
    tuple(own.params for own in members),
    np.stack([own['train'] for own in labels]),
    len(members[0].centers),
  )
  return model.assemble(recipe, params, jnp.ones((1, 1)))


def _runs(config, which):
  """The config of each run, with what all runs share, checked."""
  if not config[which]:
    raise InputError(
      f'config.{which} is empty: name some of {", ".join(config.runs)}'
    )
  runs = {}
  for name in config[which]:
    checks.check_choice(f'each of config.{which}', name, config.runs)
    own = config.runs[name].to_dict()
    size = own['data']['size'] or config.data.size
    own['data'] = config.data.to_dict() | {'size': size}
    own |= {'seed': config.seed, 'num_seeds': config.num_seeds}
    runs[name] = ConfigDict(own)
    pipeline.prepare(runs[name])
  return runs


def _made(runs: dict, path: pathlib.Path, seconds: dict) -> Iterator:
  """Yields the name and the summary of each run, which is made if it is not
  finished; in process 0, the others take their part and see none."""
  for name, config in runs.items():
    console.say(f'{name}: {pipeline.title(config)}')
    with timed(seconds, name, quietly=True):
      summary = records.fill_within(config, path / name)
    if processes.leads():
      yield name, summary


def _row(name, summary):
  """What a leaderboard tells of a run: scores by split, seconds of a seed."""
  seeds = summary.get('seeds', [summary])
  scores = {
    split: {
      score: [seed[split][score] for seed in seeds]
      for score in ('acc', 'nmi', 'ari')
    }
    for split in ('train', 'test')
    if split in summary
  }
  own = [*summary['experiment'].split('-'), 'manifold', 'spread']
  seconds = sum(summary['seconds'].get(phase, 0.0) for phase in own)
  return {'name': name, 'seconds': seconds / len(seeds), **scores}

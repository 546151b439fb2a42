"""From images to clusters: represent, cluster, assign, score, show.

Axes: N images, H height, W width, C channels, D features, K clusters, R
restarts, S steps.
"""

import difflib
import functools
import inspect
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclust import (
  answers,
  checks,
  data,
  findings,
  metrics,
  model,
  networks,
  phases,
  plans,
  processes,
  reliability,
  selection,
  storage,
  tables,
  workdir,
)
from jaxclust.algorithms import gmm, neighbors, spreading
from jaxclust.algorithms.assignment import ALGORITHMS
from jaxclust.algorithms.solver import StopReason
from jaxclust.data import Dataset, batches
from jaxclust.errors import InputError
from jaxclust.methods import METHODS, Method
from jaxclust.model import Model
from jaxclust.report import console, maps, page
from jaxclust.report.console import timed

# Maximum number of restarts whose labels are compared with one another.
_COMPARED = 10

# What a summary tells of an epoch.
_OF_AN_EPOCH = ('epoch', 'train_loss', 'val_loss')


class Represented(NamedTuple):
  """Images as points, and how they became such."""

  points: dict[str, jax.Array]  # split -> [N, D]
  own: Model  # without a clusterer's clusters
  records: dict  # stage -> what was logged of its epoch


def title(config: Any) -> str:
  """The stages and the clusterer of a config, as a name."""
  return '-'.join(filter(None, (*config.stages, config.clusterer)))


def prepare(config: Any) -> tuple[Dataset, Callable]:
  """Loads the images, and checks all options before anything compiles.

  Returns:
    The images; and `(path, seconds) -> summary, sections`, which writes all
    files of a run but its summary and its page.

  Raises:
    InputError: if an option cannot be used.
  """
  dataset = data.load(**config.data)
  maps.check_embedding(config.embedding)
  config = for_few(config, dataset)
  num_features, method = check_stages(config, dataset)
  name = config.clusterer
  if name:
    checks.check_choice('config.clusterer', name, ALGORITHMS)
    if name not in config:
      raise InputError(
        f'config.clusterer is {name!r}, but there is no config.{name}: take a '
        'config that has one, or add it to yours'
      )
    if config[name].get('covariance') == 'auto':
      count = config[name].num_components
      family = gmm.suited_family(len(dataset.images), num_features, count)
      config[name].covariance = family
    options = config[name].to_dict()
    ALGORITHMS[name].check(len(dataset.images), num_features, **options)
  elif method is None or method.assigner is None:
    raise InputError(
      f'config.clusterer is empty, and the stages {tuple(config.stages)} do '
      f'not assign images: name one of {", ".join(ALGORITHMS)}'
    )
  elif config.standardize:
    raise InputError(
      f'config.standardize is True, but {config.stages[-1]} assigns its '
      'embeddings as they are: set it to False, or name a config.clusterer'
    )
  check_spread(config, dataset)
  return dataset, functools.partial(_run, config, dataset)


def for_few(config: Any, dataset: Dataset) -> ConfigDict:
  """A config with trainings for the number of images, see `plans.for_few`."""
  config, num_images = ConfigDict(config.to_dict()), len(dataset.images)
  for stage in config.stages if 'training' in config else ():
    options, _ = model.stage_options(config, stage)
    if found := plans.for_few(num_images, options):
      config[stage] = config.get(stage, ConfigDict()).to_dict() | found
  return config


def check_spread(config: Any, dataset: Dataset) -> None:
  """Checks how neighbours are to agree on clusters, if they are."""
  if not config.get('spread', {}).get('num_neighbors'):
    return
  spreading.check(len(dataset.images), **config.spread, prefix='config.spread.')
  if config.get('clusterer'):
    raise InputError(
      f'config.spread.num_neighbors is {config.spread.num_neighbors}, but '
      f'config.clusterer is {config.clusterer!r}: neighbours agree on clusters '
      "of methods that have them; set one of both to 0 or to ''"
    )


def check_stages(config: Any, dataset: Dataset) -> tuple[int, Method | None]:
  """Checks images, network, training and manifold; returns D, the features of a
  point, and the last method."""
  num_features, method = _check_training(config, dataset)
  manifold = config.get('manifold')
  if not manifold:
    return num_features, method
  for name in ('num_neighbors', 'num_features'):
    most = len(dataset.images) - 1
    checks.check_count(f'config.manifold.{name}', manifold[name], high=most)
  return manifold.num_features, None  # places are not what the method assigns


def _check_training(config, dataset):
  for images in splits_of(dataset).values():
    model.check_images(images, bool(config.stages))
  shape = dataset.images.shape[1:]
  if not config.stages:
    return int(np.prod(shape)), None
  if 'network' not in config:
    raise InputError(
      f'config.stages is {config.stages}, but there is no config.network: take '
      'a config that has one, as configs/gmm.py'
    )
  networks.check_options(**config.network)
  network = networks.build(shape, **config.network)
  params = None
  for number, stage in enumerate(config.stages):
    checks.check_choice('each of config.stages', stage, METHODS)
    options, own = model.stage_options(config, stage)
    _check_names(stage, own, options)
    method = METHODS[stage](network, **own)
    plans.check_options(len(dataset.images), method, options)
    params = _shapes_of(method, params, shape)
    if params is None or stage in config.stages[:number]:
      raise InputError(
        f'config.stages is {config.stages}: {stage} cannot go on from the '
        'stages before it; change the order, or leave it out'
      )
  return method.code_size, method


def _check_names(stage, own, training):
  """Checks that a method has the options of `config[stage]`, and gets those
  that it needs."""
  parameters = inspect.signature(METHODS[stage]).parameters.values()
  known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  for name in own.keys() - known.keys():
    names = [*known, *training]
    (near,) = difflib.get_close_matches(name, names, n=1, cutoff=0)
    raise InputError(
      f'there is no config.{stage}.{name}: did you mean config.{stage}.{near}?'
    )
  for name in known.keys() - own.keys():
    if known[name].default is known[name].empty:
      raise InputError(
        f'config.{stage}.{name} is missing: take a config that has '
        f'config.{stage}, or add it to yours'
      )


def _shapes_of(method, previous, image_shape):
  """Shapes of a method's parameters; None if those before do not suit it."""
  try:
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(method.init, key, previous)
    pixels = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    jax.eval_shape(method.embed, params, pixels)
  except Exception:
    if previous is None:
      raise
    return None
  return params


def splits_of(dataset: Dataset) -> dict[str, np.ndarray]:
  """The images of each split."""
  splits = {'train': dataset.images, 'test': dataset.test_images}
  return {name: x for name, x in splits.items() if x is not None}


def _run(config, dataset, path, seconds):
  """Fits, labels and scores for each seed."""
  seeds = range(config.seed, config.seed + config.num_seeds)
  name = config.clusterer
  represented = represent(config, dataset, seeds, path, seconds)
  rows, sections, found_labels = [], [], []
  for seed, found in zip(seeds, represented, strict=True):
    own, fit, history = _cluster(config, path, seed, found, seconds)
    if not processes.leads():
      continue
    own = spread(own, found.points['train'], seconds)
    with timed(seconds, 'score'):
      own, judged, scores = answers.judge(dataset, own, found.points)
    with timed(seconds, 'confidence'):
      own, judged, sureness = reliability.calibrate(
        own, found.points['train'], judged
      )
    with timed(seconds, 'score'):
      scores['fit'] = fit = reliability.told(sureness) | fit
      if dataset.labels is None:
        labels = judged['train'].labels
        fit |= silhouette(found.points['train'], labels, own)
    found_labels.append({split: each.labels for split, each in judged.items()})
    storage.save(path, own, seed - config.seed)
    if seed == config.seed:
      arrays = answers.arrays_of(own, judged, found.points)
      workdir.write_arrays(path, 'assignments.npz', **arrays)
      with timed(seconds, 'figures'):
        places = maps.locate(found.points, config.embedding)
        tables.write(path, dataset, own, judged, places)
        stage = next(iter(config.stages), None)
        shown = findings.find(
          *(dataset, own, places, judged, scores),
          losses=workdir.read_log(path, phase=stage, seed=seed),
          histories=history,
          views=findings.views(config, dataset.images),
          reliability=sureness,
          score_name=ALGORITHMS[name].score if name else '',
        )
        sections = page.draw(shown, path / 'figures')
    rows.append({'seed': seed, **scores, **found.records})
  if not processes.leads():
    return {}, []
  summary = {k: v for k, v in rows[0].items() if k != 'seed'}
  if len(rows) > 1:
    summary |= metrics.over_seeds(rows)
    summary['vote'], votes = answers.vote(
      dataset, found_labels, rows, len(own.centers)
    )
    workdir.write_arrays(path, 'assignments.npz', **arrays, **votes)
  return summary, sections


def represent(
  config: Any,
  dataset: Dataset,
  seeds: Sequence[int],
  path: pathlib.Path,
  seconds: dict,
) -> Iterator[Represented]:
  """Yields what is clustered for each seed, after the stages' trainings."""
  splits, shape = splits_of(dataset), dataset.images.shape[1:]
  recipe = model.make_recipe(config, shape)
  if not config.stages:
    values = model.value_range(dataset.images)
    own = model.assemble(model.make_recipe(config, shape, values))
    points = {split: own.points(images) for split, images in splits.items()}
    own, points = _placed(config, own, points, seconds)
    yield from (Represented(points, own, {}) for _ in seeds)
    return
  placement = config.training.placement
  placed = batches.place(list(splits.values()), placement)
  splits = dict(zip(splits, placed, strict=True))
  network = networks.build(shape, **config.network)
  params, records = None, []
  for stage in config.stages:
    options, own = model.stage_options(config, stage)
    plan = plans.plan(
      functools.partial(METHODS[stage], **own),
      network,
      splits['train'],
      splits.get('test'),
      phases.draw_keys(seeds),
      options,
    )
    console.say(
      f'{stage}: {options["num_epochs"]} epochs of {plan.steps_per_epoch} '
      f'batches of {options["batch_size"]}'
    )
    with timed(seconds, stage, quietly=True):
      params, found = phases.train(path, stage, plan, seeds, params)
    records.append(found)
  for run in range(len(seeds)):
    one_run = jax.tree.map(lambda a: a[run], params)  # noqa: B023
    own = model.assemble(recipe, one_run, jnp.ones((1, 1)))
    with timed(seconds, 'encode'):
      points = {
        split: processes.by_shares(own.points, images)
        for split, images in splits.items()
      }
      if config.standardize:
        own = own._replace(scale=_deviations(points['train']))
        points = {split: x / own.scale for split, x in points.items()}
      jax.block_until_ready(points)
    own, points = _placed(config, own, points, seconds)
    told = {
      stage: {k: v for k, v in found[run].items() if k in _OF_AN_EPOCH}
      | {'batch_size': model.stage_options(config, stage)[0]['batch_size']}
      for stage, found in zip(config.stages, records, strict=True)
    }
    yield Represented(points, own, told)


def _placed(config, own, points, seconds):
  """The model and its points on a manifold of the first split, if there is to
  be one."""
  if not config.get('manifold'):
    return own, points
  with timed(seconds, 'manifold'):
    manifold = neighbors.embed(points['train'], **config.manifold)
    own = own._replace(manifold=processes.same(manifold))
    return own, {split: own.place(x) for split, x in points.items()}


def _deviations(x):
  """Standard deviations `[1, D]` of points `[N, D]`, 1 where there is none."""
  deviation = x.std(axis=0)
  rounding = jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
  return jnp.where(deviation > 8 * rounding, deviation, 1)[None]


def _cluster(config, path, seed, found, seconds):
  """Clusters the points, if a clusterer is to do so.

  Returns:
    The model with its clusters, scores of the fit, and the scores `[S, R]` of
    all restarts after each step.
  """
  name = config.clusterer
  if not name:
    return found.own, {}, np.empty((0, 0))
  clusterer, options = ALGORITHMS[name], config[name].to_dict()
  x = found.points['train']
  if 'covariance' in options:
    family = options['covariance']
    console.say(f'{name}: {family} covariances in {x.shape[1]} dimensions')
  with timed(seconds, name, quietly=True):
    result, state = phases.cluster(path, name, seed, x, options)
  if not processes.leads():
    return found.own, {}, np.empty((0, 0))
  clusters = clusterer.clusters(result)
  fit = {
    'stop_reason': StopReason(int(result.stop_reason)).name.lower(),
    'num_steps': int(result.num_steps),
    **{n: v for n, v in options.items() if n == 'covariance'},
    **clusterer.criteria(clusters, x),
    clusterer.score: float(getattr(result, clusterer.score)),
  }
  if len(state.num_steps) > 1:
    labels = phases.labelings(name, state, x, options, _COMPARED)
    fit = {'stability': selection.stability(labels)} | fit
  records = workdir.read_log(path, phase=name, seed=seed)
  history = [row for r in records for row in r['restarts']]
  return found.own._replace(clusters=clusters), fit, np.array(history, float)


def spread(own: Model, x: jax.Array, seconds: dict) -> Model:
  """The model whose clusters the neighbours among points `[N, D]` have agreed
  upon, if its recipe says so."""
  if not own.recipe['spread']:
    return own
  with timed(seconds, 'spread'):
    shares = spreading.shares_of(own.assigner, own.clusters, x)
    found = spreading.spread(x, shares, **own.recipe['spread'])
    return model.assemble(
      *(own.recipe, own.params, own.scale, own.clusters, own.manifold), found
    )


def silhouette(x: jax.Array, labels: np.ndarray, own: Model) -> dict:
  """The silhouette of labels `[N]` of points `[N, D]`, where it is defined."""
  if len(own.centers) < 2:
    return {}
  (found,) = selection.silhouette(x, labels[None], [len(own.centers)])
  return {'silhouette': float(found)} if np.isfinite(found) else {}

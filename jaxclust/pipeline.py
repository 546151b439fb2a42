"""From images to clusters: represent, cluster, assign, score, show.

Axes: N images, H height, W width, C channels, D features, K clusters.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclust import (
  metrics,
  model,
  networks,
  phases,
  plans,
  selection,
  workdir,
)
from jaxclust.algorithms.assignment import ALGORITHMS
from jaxclust.algorithms.solver import StopReason
from jaxclust.data import Dataset, batches
from jaxclust.methods import METHODS
from jaxclust.model import Model
from jaxclust.report import console, page

# Maximum number of restarts whose labels are compared with one another.
_COMPARED = 10


class Represented(NamedTuple):
  """Images as points, and how they became such."""

  points: dict[str, jax.Array]  # split -> [N, D]
  params: Any  # of the last stage's method, or None for pixels
  scale: Any  # [1, D], that embeddings are divided by
  records: dict  # stage -> what was logged of its epoch


def title(config: Any) -> str:
  """The stages and the clusterer of a config, as a name."""
  return '-'.join(filter(None, (*config.stages, config.clusterer)))


def run(
  config: Any, dataset: Dataset, path: pathlib.Path, seconds: dict
) -> tuple[dict, list]:
  """Fits, labels and scores for each seed; writes all but the summary.

  Args:
    config: of the experiment.
    dataset: its images.
    path: the run directory.
    seconds: of the phases, to be filled.

  Returns:
    Its part of the summary, and the sections of the page.
  """
  seeds = range(config.seed, config.seed + config.num_seeds)
  recipe = model.make_recipe(config, dataset.images.shape[1:])
  represented = represent(config, dataset, seeds, path, seconds)
  rows, sections = [], []
  for seed, found in zip(seeds, represented, strict=True):
    clusters, fit, history = _cluster(config, path, seed, found, seconds)
    with timed(seconds, 'score'):
      own = model.assemble(recipe, found.params, found.scale, clusters)
      judged = {split: own.judge(x) for split, x in found.points.items()}
      labels = {
        split: assignment.labels for split, assignment in judged.items()
      }
      scores = label_scores(dataset, labels, len(own.centers)) | {'fit': fit}
      if dataset.labels is None:
        fit |= _silhouette(found.points['train'], labels['train'], own)
    if seed == config.seed:
      _write_assignments(path, own, labels, found.points)
      model.save(path, own)
      with timed(seconds, 'figures'):
        findings = find(
          dataset, own, found.points['train'], judged['train'], scores
        )._replace(
          losses=_losses(config, path, seed),
          histories=history,
          score_name=next(reversed(fit), ''),
        )
        folder = path / 'figures'
        sections = page.draw(findings, folder, config.embedding)
    rows.append({'seed': seed, **scores, **found.records})
  first = {k: v for k, v in rows[0].items() if k != 'seed'}
  return first | (metrics.over_seeds(rows) if len(rows) > 1 else {}), sections


def represent(
  config: Any,
  dataset: Dataset,
  seeds: Sequence[int],
  path: pathlib.Path,
  seconds: dict,
) -> Iterator[Represented]:
  """Yields what is clustered for each seed, after the stages' trainings."""
  splits = {'train': dataset.images}
  if dataset.test_images is not None:
    splits['test'] = dataset.test_images
  if not config.stages:
    points = {s: model.to_points(i, None) for s, i in splits.items()}
    yield from (Represented(points, None, None, {}) for _ in seeds)
    return
  placement = config.training.placement
  placed = batches.place(list(splits.values()), placement)
  splits = dict(zip(splits, placed, strict=True))
  network = networks.build(dataset.images.shape[1:], **config.network)
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
    with timed(seconds, stage, quietly=True):
      params, found = phases.train(path, stage, plan, seeds, params)
    records.append(found)
  for run in range(len(seeds)):
    own = jax.tree.map(lambda a: a[run], params)  # noqa: B023, used at once
    told = dict(zip(config.stages, (r[run] for r in records), strict=True))
    with timed(seconds, 'encode'):
      represented = _encode(config, plan.method, own, splits, told)
    yield represented


def _encode(config, method, params, splits, records):
  """The embeddings of all splits by one network."""
  one = jnp.ones((1, 1))
  encoder = model.Encoder(method, params, one, config.training.batch_size)
  points = {split: encoder.encode(images) for split, images in splits.items()}
  scale = _deviations(points['train']) if config.standardize else one
  points = jax.block_until_ready({s: x / scale for s, x in points.items()})
  shown = ('epoch', 'train_loss', 'val_loss')
  records = {
    stage: {k: record[k] for k in shown if k in record}
    for stage, record in records.items()
  }
  return Represented(points, params, scale, records)


def _deviations(x):
  """Standard deviations `[1, D]` of points `[N, D]`, 1 where there is none."""
  deviation = x.std(axis=0)
  rounding = jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
  return jnp.where(deviation > 8 * rounding, deviation, 1)[None]


def _cluster(config, path, seed, found, seconds):
  """Clusters of the points, if a clusterer makes them.

  Returns:
    The clusters or None, scores of the fit, and the scores `[S, R]` of all
    restarts after each step.
  """
  name = config.clusterer
  if not name:
    return None, {}, np.empty((0, 0))
  clusterer, options = ALGORITHMS[name], config[name].to_dict()
  x = found.points['train']
  with timed(seconds, name, quietly=True):
    result, state = phases.cluster(path, name, seed, x, options)
  clusters = clusterer.clusters(result)
  fit = {
    'stop_reason': StopReason(int(result.stop_reason)).name.lower(),
    'num_steps': int(result.num_steps),
    **clusterer.criteria(clusters, x),
    clusterer.score: float(getattr(result, clusterer.score)),
  }
  if len(state.num_steps) > 1:
    labels = phases.labelings(name, state, x, options, _COMPARED)
    fit = {'stability': selection.stability(labels)} | fit
  records = workdir.read_log(path, phase=name, seed=seed)
  history = [row for r in records for row in r['restarts']]
  return clusters, fit, np.array(history, float)


def _silhouette(x, labels, own):
  """The silhouette of labels `[N]`, where it is defined."""
  if len(own.centers) < 2:
    return {}
  (found,) = selection.silhouette(x, labels[None], [len(own.centers)])
  return {'silhouette': float(found)} if np.isfinite(found) else {}


def label_scores(
  dataset: Dataset, labels: dict[str, np.ndarray], num_clusters: int
) -> dict:
  """Scores of each split, in the dataset's order, that has classes."""
  classes = (dataset.labels, dataset.test_labels)
  return {
    split: metrics.scores(own, found, num_clusters)
    for (split, found), own in zip(labels.items(), classes, strict=False)
    if own is not None
  }


def _write_assignments(path, own, labels, points):
  arrays = {f'{split}_labels': found for split, found in labels.items()}
  if own.assigner.probabilities is not None:
    for split, x in points.items():
      found = own.assigner.probabilities(own.clusters, x)
      arrays[f'{split}_responsibilities'] = np.asarray(found)
  workdir.write_arrays(path, 'assignments.npz', **arrays)


def _losses(config, path, seed):
  """The log records of the epochs of the first stage."""
  if not config.stages:
    return []
  return workdir.read_log(path, phase=config.stages[0], seed=seed)


def find(
  dataset: Dataset, own: Model, x: jax.Array, found: Any, scores: dict
) -> page.Findings:
  """What the page shows of the first split.

  Args:
    dataset: the images.
    own: the model.
    x: `[N, D]` points of the first split.
    found: its Assignment.
    scores: of each split.
  """
  images, centers = _pictures(dataset, own)
  errors, reconstruct = None, None
  if own.encoder is not None:
    errors = np.asarray(own.encoder.errors(dataset.images))
    reconstruct = own.encoder.reconstruct
  return page.Findings(
    images=images,
    points=x,
    labels=found.labels,
    confidence=found.confidence,
    outlier_score=found.outlier_score,
    centers=centers,
    classes=dataset.labels,
    class_names=dataset.label_names,
    scores={part: s for part, s in scores.items() if part != 'fit'},
    losses=[],
    reconstruction_errors=errors,
    reconstruct=reconstruct,
    histories=np.empty((0, 0)),
    score_name='',
  )


def _pictures(dataset, own):
  """Images and centers as images, floats within 0 and 1."""
  images = dataset.images
  centers = np.asarray(own.decode(own.centers))
  if own.encoder is not None:
    return images, centers
  low, high = 0.0, 1.0
  if images.dtype != np.uint8:
    low, high = min(low, images.min()), max(high, images.max())
    images = (images - low) / (high - low)
  return images, (centers - low) / (high - low)


@contextlib.contextmanager
def timed(seconds: dict, phase: str, quietly: bool = False) -> Iterator[None]:
  """Adds the seconds of a phase to those before; shows that it goes on, unless
  it shows its progress itself."""
  begun = time.perf_counter()
  with contextlib.nullcontext() if quietly else console.working(phase):
    yield
  seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - begun

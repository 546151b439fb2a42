"""Experiments: config -> data -> representation -> clusters -> run directory.

A pipeline takes up what an earlier process of the same run has saved; a sweep
and a benchmark begin again.

Axes: N images, H height, W width, C channels, D features, K clusters.
"""

import contextlib
import ctypes
import errno
import functools
import importlib.metadata
import itertools
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxclust import (
  autoencoder,
  benchmark,
  data,
  fitting,
  gmm,
  inference,
  metrics,
  numerics,
  peers,
  selection,
  signals,
  streaming,
  workdir,
)
from jaxclust.autoencoder import Autoencoder
from jaxclust.fitting import CLUSTERERS, RunError
from jaxclust.inference import Model
from jaxclust.numerics import InputError, StopReason
from jaxclust.report import board, console, figures, page

_VERSIONS = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scikit-learn')

# glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD: no memory of its own for
# large buffers, never give back, take 256 MiB at a time.
_MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}

# Experiment -> whether images are encoded first, and the clusterer.
PIPELINES = {
  'kmeans': (False, 'kmeans'),
  'ae_kmeans': (True, 'kmeans'),
  'gmm': (True, 'gmm'),
}


# What a disk that takes no more answers.
_DISK_ERRORS = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EIO,
}

# Images of each cluster in the gallery.
_TYPICAL = 12

# Restarts whose labels are compared with one another.
_COMPARED = 10

# Tells XLA how many devices a CPU is.
_COUNT_FLAG = 'xla_force_host_platform_device_count'


class Experiment(NamedTuple):
  """What runs from the data to the summary."""

  check: Callable  # (config, dataset): of all options, before any compiling
  run: Callable  # (config, dataset, path, seconds) -> its part of the summary,
  # and the sections of the page
  show: Callable  # (config, summary): the last thing that a person sees
  load: Callable = lambda config: data.load(**config.data)  # -> the dataset


def run(
  config: ConfigDict, directory: str | None = None, command: str | None = None
) -> pathlib.Path:
  """Runs an experiment, or takes up where an earlier process left it.

  Args:
    config: as in `configs/`.
    directory: the run directory; a new one under `runs/` if None.
    command: what was typed, for the page to tell.

  Returns:
    The run directory.

  Raises:
    InputError: for a config, data or a directory that cannot be used; nothing
      is written then.
    RunError: if the training diverges, the disk takes no more, or a peer did
      not do the same; and for an error that nobody expected, whose traceback
      is kept in the run directory.
  """
  if directory is not None and workdir.check(directory, config.to_dict()):
    console.say('already finished')
    return pathlib.Path(directory)
  _keep_freed_memory()
  _keep_programs()
  _use_all_cores()
  seconds = {}
  with _recorded_warnings() as messages:
    experiment = _check_config(config)
    with _timed(seconds, 'data'), console.working('data'):
      dataset = experiment.load(config)
    experiment.check(config, dataset)
    if directory is None:
      name = pathlib.Path(dataset.name).stem  # it may be a path
      directory = workdir.new_path(f'{config.experiment}-{name}')
    with workdir.claim(directory, config.to_dict()) as path:
      console.say(
        f'{config.experiment} on {dataset.name} '
        f'({len(dataset.images):,} images), {_device()}, in {path}'
      )
      summary = _circumstances(config, dataset)
      with contextlib.ExitStack() as stack:
        stack.enter_context(_telling_how_to_go_on(path))
        if config.get('tensorboard'):
          read = functools.partial(workdir.read_log, path)
          stack.enter_context(board.mirror(path / 'tensorboard', read))
        found, sections = experiment.run(config, dataset, path, seconds)
        summary |= found
        summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
        summary['warnings'] = messages
        html = page.render(
          summary, config.to_dict(), _reference(config), sections, command
        )
        workdir.write_text(path, 'report.html', html)
        workdir.write_json(path, 'summary.json', summary)
      experiment.show(config, summary)
  return path


def _run_pipeline(config, dataset, path, seconds):
  """Fits, labels and scores for each seed; writes all but the summary."""
  encoded, name = PIPELINES[config.experiment]
  seeds = range(config.seed, config.seed + config.num_seeds)
  rows = []
  represented = _represent(config, dataset, encoded, seeds, path, seconds)
  sections = []
  for seed, (points, encoder, told) in zip(seeds, represented, strict=True):
    options = config[name].to_dict()
    with _timed(seconds, name):
      x = points['train']
      result, state = fitting.cluster(path, name, seed, x, options)
    with _timed(seconds, 'score'), console.working('score'):
      clusterer = CLUSTERERS[name]
      clusters = clusterer.clusters(result)
      model = Model(dataset.images.shape[1:], name, clusters, encoder)
      labels = {s: np.asarray(model.assign(x)) for s, x in points.items()}
      num_groups = options[clusterer.groups]
      scores = _scores(dataset, clusterer, result, labels, x, num_groups)
      if dataset.labels is None:
        scores['fit'] |= _unlabelled_scores(
          name, state, x, labels['train'], num_groups
        )
      if seed == config.seed:
        _write_assignments(path, result, labels, points)
        inference.save(path, model)
    if seed == config.seed:
      with _timed(seconds, 'figures'), console.working('figures'):
        found = model.judge(x)
        findings = _find(dataset, model, x, found, scores)._replace(
          losses=workdir.read_log(path, phase='autoencoder', seed=seed),
          histories=_histories(path, name, seed),
          score_name=clusterer.score,
        )
        sections = page.draw(findings, path / 'figures', config.embedding)
    rows.append({'seed': seed, **scores, **told})
  first = {k: v for k, v in rows[0].items() if k != 'seed'}
  if len(rows) > 1:
    first |= _over_seeds(rows)
  return first, sections


def _over_seeds(rows):
  """The rows of all seeds, and mean and standard deviation of their numbers;
  of purities, whose clusters have no common order, by rank."""

  def over(fn, values):
    first = values[0]
    if isinstance(first, dict):
      keys = dict.fromkeys(k for v in values for k in v)
      found = {k: over(fn, [v[k] for v in values if k in v]) for k in keys}
      return {k: v for k, v in found.items() if v is not None}
    if isinstance(first, list):
      return fn(np.sort(values), axis=0).tolist()
    return float(fn(values)) if isinstance(first, int | float) else None

  numbers = [{k: v for k, v in row.items() if k != 'seed'} for row in rows]
  return {
    'seeds': rows,
    'mean': over(np.mean, numbers),
    'std': over(np.std, numbers),
  }


def _run_sweep(config, dataset, path, seconds):
  """Clusters into each number of clusters, then scores all at once."""
  seeds = [config.seed]
  represented = _represent(config, dataset, config.encode, seeds, path, seconds)
  x = next(represented)[0]['train']
  counts = tuple(config.sweep.num_clusters)
  workdir.rewind_log(path, 'num_clusters', 0, phase='sweep')
  records, labels = [], []
  key = fitting.draw_keys(seeds, fitting.CLUSTERS)[0]
  sweep = selection.sweep(key, x, **config.sweep.to_dict())
  with _timed(seconds, 'sweep'), console.progress('sweep', len(counts)) as show:
    for record in sweep:
      labels.append(record.pop('labels'))
      workdir.log(path, phase='sweep', **record)
      records.append(record)
      show(len(records), f'{record["num_clusters"]} clusters')
  with _timed(seconds, 'silhouette'), console.working('silhouette'):
    scores = selection.silhouette(x, jnp.stack(labels), counts)
    for record, score in zip(records, scores.tolist(), strict=True):
      record['silhouette'] = score if np.isfinite(score) else None
  choices = selection.choose(records)
  chart = path / 'figures' / 'sweep.png'
  figures.sweep(chart, records, choices)
  section = page.Section(
    'Criteria',
    'What each criterion says of each number of clusters, and its choice.',
    charts=[(chart, 'criteria over the number of clusters')],
  )
  return {'sweep': records, 'choices': choices}, [section]


def _run_benchmark(config, dataset, path, seconds):
  """Measures this code against its peers; writes benchmark.json."""
  key = jax.random.key(config.seed)
  images = jnp.asarray(dataset.images)
  options = config.benchmark.to_dict()
  workdir.rewind_log(path, 'row', 0, phase='benchmark')
  rows = []
  with (
    _timed(seconds, 'benchmark'),
    console.progress('benchmark', benchmark.num_rows(**options)) as show,
  ):
    records = benchmark.run(key, images, **options)
    limits = next(records)
    try:
      for record in records:
        rows.append(record)
        workdir.log(path, phase='benchmark', row=len(rows), **record)
        show(len(rows), record['name'])
    except benchmark.MismatchError as error:
      raise RunError(str(error)) from error
  results = {'limits': limits, 'rows': rows, 'peers': peers.versions()}
  workdir.write_json(path, 'benchmark.json', results | _device_and_versions())
  chart = path / 'figures' / 'benchmark.png'
  figures.benchmark(chart, rows)
  section = page.Section(
    'Speeds',
    'How many times as long the others take for the same.',
    charts=[(chart, 'ratios of seconds')],
  )
  return results, [section]


def _load_for_run(config):
  """The images, made like those of the run that is to be used."""
  image_shape = inference.load(config.run).image_shape
  options = config.data.to_dict()
  if data.as_size(options['size']) not in (None, image_shape[:2]):
    raise InputError(
      f'config.data.size is {options["size"]}, but {config.run} takes images '
      f'of {image_shape[:2]}: leave it out'
    )
  dataset = data.load(**options | {'size': image_shape[:2]})
  return data.with_channels(dataset, image_shape[2])


def _check_prediction(config, dataset):
  page.check_embedding(config.embedding)
  _check_images(dataset, inference.load(config.run).encoder is not None)


def _run_prediction(config, dataset, path, seconds):
  """Finds the clusters of all images; writes predictions.csv."""
  model = inference.load(config.run)
  splits = {'images': dataset.images}
  if dataset.test_images is not None:
    splits = {'train': dataset.images, 'test': dataset.test_images}
  with _timed(seconds, 'predict'), console.working('predict'):
    points = {
      s: inference.to_points(images, model.encoder)
      for s, images in splits.items()
    }
    found = {s: model.judge(x) for s, x in points.items()}
    inference.write_table(path, found, dataset.files)
  with _timed(seconds, 'figures'), console.working('figures'):
    first, num_clusters = next(iter(splits)), len(model.centers)
    labels = {split: own.labels for split, own in found.items()}
    scores = _label_scores(dataset, labels, num_clusters)
    findings = _find(dataset, model, points[first], found[first], scores)
    sections = page.draw(findings, path / 'figures', config.embedding)
    rows, titles = inference.typical(found[first], num_clusters, _TYPICAL)
    gallery = path / 'figures' / 'gallery.png'
    figures.gallery(gallery, findings.images, rows, titles)
  if config.export:
    with _timed(seconds, 'export'), console.working('export'):
      inference.export(model, path / 'model.jaxexport')
  return {'run': os.path.abspath(config.run), **scores}, sections


def _show_prediction(config, summary):
  console.say('predictions.csv tells the cluster of each image')
  if console.headline(summary, {}):
    _show_scores(config, summary)


def _represent(config, dataset, encoded, seeds, path, seconds):
  """What is clustered for each seed: codes or pixels `[N, D]` of each split,
  the encoder or None, and what is to be told of the training."""
  splits = {'train': dataset.images}
  if dataset.test_images is not None:
    splits['test'] = dataset.test_images
  if not encoded:
    points = {s: inference.to_points(i, None) for s, i in splits.items()}
    yield from ((points, None, {}) for _ in seeds)
    return
  options = config.training.to_dict()
  placed = streaming.place(list(splits.values()), options['placement'])
  splits = dict(zip(splits, placed, strict=True))
  model = Autoencoder(
    dataset.images.shape[1:], tuple(config.autoencoder.features)
  )
  with _timed(seconds, 'autoencoder'):
    params, records = fitting.train(
      path, model, splits['train'], splits.get('test'), seeds, options
    )
  for run, record in enumerate(records):
    with _timed(seconds, 'encode'), console.working('encode'):
      encoder = fitting.Encoder(
        model,
        jax.tree.map(lambda a: a[run], params),  # noqa: B023
        jnp.ones((1, 1)),
        options['batch_size'],
      )
      points = {s: inference.to_points(i, encoder) for s, i in splits.items()}
      if config.standardize:
        scale = _deviations(points['train'])
        encoder = encoder._replace(scale=scale)
        points = {split: x / scale for split, x in points.items()}
      points = jax.block_until_ready(points)
    told = {
      k: record[k] for k in ('epoch', 'train_loss', 'val_loss') if k in record
    }
    yield points, encoder, {'autoencoder': told}


def _deviations(x):
  """Standard deviations `[1, D]` of points `[N, D]`, 1 where there is none."""
  deviation = x.std(axis=0)
  rounding = jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
  return jnp.where(deviation > 8 * rounding, deviation, 1)[None]


def _circumstances(config, dataset):
  """What was run, on what and with what."""
  test = dataset.test_images
  return {
    'experiment': config.experiment,
    'dataset': {
      'name': dataset.name,
      'num_train': len(dataset.images),
      **({} if test is None else {'num_test': len(test)}),
      'image_shape': list(dataset.images.shape[1:]),
      'digest': data.digest(dataset),
    },
    **({'seed': config.seed} if 'seed' in config else {}),
    **_device_and_versions(),
  }


def _device_and_versions():
  return {
    'device': _device(),
    'versions': {
      'python': sys.version.split()[0],
      **{n: importlib.metadata.version(n) for n in ('jaxclust', *_VERSIONS)},
    },
  }


def _scores(dataset, clusterer, result, labels, x, num_groups):
  """Scores of each split that has labels, and of the fit."""
  fit = {
    'stop_reason': StopReason(int(result.stop_reason)).name.lower(),
    'num_steps': int(result.num_steps),
    clusterer.score: float(getattr(result, clusterer.score)),
  }
  if isinstance(result, gmm.GMMResult):
    fit['bic'] = float(gmm.bic(result.params, x))
  return _label_scores(dataset, labels, num_groups) | {'fit': fit}


def _label_scores(dataset, labels, num_groups):
  """Scores of each split, in order, that has labels."""
  classes = (dataset.labels, dataset.test_labels)
  return {
    split: metrics.scores(own, found, num_groups)
    for (split, found), own in zip(labels.items(), classes, strict=False)
    if own is not None
  }


def _unlabelled_scores(name, state, x, labels, num_groups):
  """How well the clusters part, and how well restarts agree on them."""
  scores = {}
  if num_groups > 1:
    found = selection.silhouette(x, jnp.asarray(labels)[None], [num_groups])
    if np.isfinite(found[0]):  # it is not where all are in one cluster
      scores['silhouette'] = float(found[0])
  if len(state.num_steps) > 1:
    some = itertools.islice(fitting.labelings(name, state, x), _COMPARED)
    scores['stability'] = selection.stability(list(some))
  return scores


def _write_assignments(path, result, labels, points):
  arrays = {f'{split}_labels': found for split, found in labels.items()}
  if isinstance(result, gmm.GMMResult):
    for split, x in points.items():
      arrays[f'{split}_responsibilities'] = np.asarray(
        gmm.responsibilities(result.params, x)
      )
  workdir.write_arrays(path, 'assignments.npz', **arrays)


def _histories(path, name, seed):
  """Scores `[S, R]` of all restarts after each of the logged steps."""
  records = workdir.read_log(path, phase=name, seed=seed)
  return np.array([row for r in records for row in r['restarts']], float)


def _find(dataset, model, x, found, scores) -> page.Findings:
  """What is to be seen of the first split, whose points are x."""
  images, centers = _pictures(dataset, model)
  errors, reconstruct = None, None
  if model.encoder is not None:
    errors = np.asarray(model.encoder.errors(dataset.images))
    reconstruct = model.encoder.reconstruct
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


def _pictures(dataset, model):
  """Images and centers as images, floats within 0 and 1."""
  images = dataset.images
  centers = np.asarray(model.decode(model.centers))
  if model.encoder is not None:
    return images, centers
  low, high = 0.0, 1.0
  if images.dtype != np.uint8:
    low, high = min(low, images.min()), max(high, images.max())
    images = (images - low) / (high - low)
  return images, (centers - low) / (high - low)


def _check_config(config):
  """Checks what all experiments have in common; returns the one to be run."""
  if config.experiment not in EXPERIMENTS:
    raise InputError(
      f'config.experiment is {config.experiment!r}: it must be one of '
      f'{", ".join(EXPERIMENTS)}'
    )
  seed, num_seeds = config.get('seed', 0), config.get('num_seeds', 1)
  numerics.check_count('config.num_seeds', num_seeds)
  if not 0 <= seed <= 2**32 - num_seeds:
    raise InputError(
      f'config.seed is {seed}: it must be at least 0, and of '
      f'{num_seeds} seeds from there on the last below 2**32'
    )
  if config.get('tensorboard'):
    board.check()
  return EXPERIMENTS[config.experiment]


def _check_pipeline(config, dataset):
  encoded, name = PIPELINES[config.experiment]
  page.check_embedding(config.embedding)
  num_features = _check_points(config, dataset, encoded)
  run_options, start_options = fitting.split_options(config[name].to_dict())
  module = CLUSTERERS[name].module
  module.check_start(len(dataset.images), num_features, **start_options)
  module.check_steps(run_options['max_steps'], run_options['tol'])


def _check_sweep(config, dataset):
  num_features = _check_points(config, dataset, config.encode)
  options = config.sweep.to_dict()
  selection.check_options(len(dataset.images), num_features, **options)


def _check_benchmark(config, dataset):
  inference.check_images(dataset.images, True)
  options = config.benchmark.to_dict()
  benchmark.check_options(dataset.images.shape, **options)


def _check_points(config, dataset, encoded):
  """Checks all that comes before clustering; returns D."""
  _check_images(dataset, encoded)
  shape = dataset.images.shape[1:]
  if not encoded:
    return int(np.prod(shape))
  autoencoder.check_options(**config.autoencoder)
  fitting.check_training(len(dataset.images), **config.training)
  return autoencoder.code_size(shape, config.autoencoder.features)


def _check_images(dataset, encoded):
  for images in (dataset.images, dataset.test_images):
    if images is not None:
      inference.check_images(images, encoded)


def _device():
  device = jax.devices()[0]
  return f'{device.platform} ({device.device_kind})'


def _keep_freed_memory():
  """Lets glibc keep what XLA's temporaries give back, as the next step asks
  for it again; page faults would cost a third of the training on a CPU."""
  if sys.platform != 'linux':
    return
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in _MALLOC_OPTIONS.items():
      mallopt(option, value)


def _keep_programs():
  """Lets later runs load what this one compiles, unless the user has said
  where JAX is to keep programs."""
  if jax.config.jax_compilation_cache_dir:
    return
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = pathlib.Path(home, 'jaxclust').expanduser()
  with contextlib.suppress(OSError, RuntimeError):
    path.mkdir(parents=True, exist_ok=True)
    if os.access(path, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', str(path))
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


@contextlib.contextmanager
def _telling_how_to_go_on(path: pathlib.Path) -> Iterator[None]:
  """Says what a run that ends early has left, and where."""
  place = os.path.relpath(path)
  again = (
    f'the same command with --workdir={place} takes up what is saved there'
  )
  try:
    yield
  except signals.Stopped:
    console.say(again)
    raise
  except (InputError, RunError):
    raise
  except Exception as error:
    if getattr(error, 'errno', None) in _DISK_ERRORS:
      raise RunError(
        f'{place} cannot be written ({error.strerror}): make room, then {again}'
      ) from error
    log = workdir.log_error(path, error)
    raise RunError(
      f'unexpected {type(error).__name__} ({numerics.one_line(error)}): its '
      f'traceback is in {os.path.relpath(log)}; {again}'
    ) from error


def _use_all_cores():
  """Makes each core of the CPU a device, as training shares batches among
  devices; not where JAX is at work already, or has been told how many."""
  if _COUNT_FLAG in os.environ.get('XLA_FLAGS', ''):
    return
  cores = os.cpu_count()
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  with contextlib.suppress(RuntimeError):
    if jax.config.jax_num_cpu_devices < 0:
      jax.config.update('jax_num_cpu_devices', cores)


@contextlib.contextmanager
def _timed(seconds: dict, phase: str) -> Iterator[None]:
  start = time.perf_counter()
  yield
  seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - start


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
  """Prints warnings as lines, and collects them."""
  messages = []

  def show(message, category, filename, lineno, file=None, line=None):
    del category, filename, lineno, file, line
    messages.append(str(message))
    console.say(f'warning: {message}')

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages


def _show_scores(config, summary):
  console.closing_table(summary, _reference(config))


def _reference(config):
  """The published scores of the same images, if there are any."""
  found = config.get('reference', ConfigDict()).to_dict()
  return found if found.get('dataset') == config.data.name else {}


_PIPELINE = Experiment(_check_pipeline, _run_pipeline, _show_scores)

EXPERIMENTS = {
  **dict.fromkeys(PIPELINES, _PIPELINE),
  'predict': Experiment(
    _check_prediction, _run_prediction, _show_prediction, _load_for_run
  ),
  'sweep': Experiment(
    _check_sweep,
    _run_sweep,
    lambda config, summary: console.sweep_table(
      summary['sweep'], summary['choices']
    ),
  ),
  'benchmark': Experiment(
    _check_benchmark,
    _run_benchmark,
    lambda config, summary: console.benchmark_table(
      summary['rows'], summary['limits']
    ),
  ),
}

"""Experiments: config -> data -> representation -> clusters -> run directory.

Every phase is a loop on the host around bounded device calls, so that progress,
metrics and checkpoints have a place. Training and the clustering of a pipeline
take up what an earlier process of the same run has saved; a sweep and a
benchmark begin again.

Axes: N images, H height, W width, C channels, D features, K clusters.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import pathlib
import sys
import time
import types
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
  gmm,
  kmeans,
  metrics,
  numerics,
  peers,
  report,
  selection,
  training,
  workdir,
)
from jaxclust.numerics import InputError, StopReason

# Draws of a run, each from fold_in(key(seed), number).
_INIT, _ORDER, _CLUSTERS = range(3)

_SECONDS_BETWEEN_CHECKPOINTS = 10
_VERSIONS = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scikit-learn')

# glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD: no memory of its own for
# large buffers, never give back, take 256 MiB at a time.
_MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 2**28}

# Operations of a device call that last about a second.
_CPU_OPERATIONS, _ACCELERATOR_OPERATIONS = 1e11, 1e13


class RunError(RuntimeError):
  """A run that cannot go on; what it has saved stands."""


class Clusterer(NamedTuple):
  """What the experiments need to know of an algorithm."""

  module: types.ModuleType  # start, run, best, warn and the checks of options
  groups: str  # the option that holds K
  score: str  # the field of a result that tells how well it fits
  operations: Callable  # (N, D, K) -> of one step
  predict: Callable  # (result, x [N, D]) -> labels [N]


CLUSTERERS = {
  'kmeans': Clusterer(
    module=kmeans,
    groups='num_clusters',
    score='inertia',
    operations=lambda n, d, k: 0.4 * n * d * k,  # bounds spare the rest
    predict=lambda result, x: kmeans.predict(result.centers, x),
  ),
  'gmm': Clusterer(
    module=gmm,
    groups='num_components',
    score='log_likelihood',
    operations=lambda n, d, k: 4 * n * d * d * k,
    predict=lambda result, x: gmm.predict(result.params, x),
  ),
}

# Experiment -> whether images are encoded first, and the clusterer.
PIPELINES = {
  'kmeans': (False, 'kmeans'),
  'ae_kmeans': (True, 'kmeans'),
  'gmm': (True, 'gmm'),
}


class Experiment(NamedTuple):
  """What runs between the data and the summary."""

  check: Callable  # (config, dataset): of all options, before any compiling
  run: Callable  # (config, dataset, path, seconds) -> the summary's own part
  show: Callable  # (config, summary): the last thing that a person sees


def run(config: ConfigDict, directory: str | None = None) -> pathlib.Path:
  """Runs an experiment, or takes up where an earlier process left it.

  Args:
    config: as in `configs/`.
    directory: the run directory; a new one under `runs/` if None.

  Returns:
    The run directory.

  Raises:
    InputError: for a config, data or a directory that cannot be used; nothing
      is written then.
    RunError: if the training diverges, or a peer did not do the same.
  """
  _keep_freed_memory()
  _keep_programs()
  seconds = {}
  with _recorded_warnings() as messages:
    with _timed(seconds, 'data'):
      dataset = data.load(**config.data)
    _check(config, dataset)
    if directory is None:
      directory = workdir.new_path(f'{config.experiment}-{dataset.name}')
    with workdir.claim(directory, config.to_dict()) as path:
      if workdir.read_json(path, 'summary.json') is not None:
        report.say('already finished')
        return path
      report.say(
        f'{config.experiment} on {dataset.name} '
        f'({len(dataset.images):,} images), {_device()}, in {path}'
      )
      experiment = EXPERIMENTS[config.experiment]
      summary = _circumstances(config, dataset)
      summary |= experiment.run(config, dataset, path, seconds)
      summary['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
      summary['warnings'] = messages
      workdir.write_json(path, 'summary.json', summary)
      experiment.show(config, summary)
  return path


def _run_pipeline(config, dataset, path, seconds):
  """Fits, labels and scores; writes all but the summary."""
  encoded, name = PIPELINES[config.experiment]
  clusterer = CLUSTERERS[name]
  key = jax.random.key(config.seed)
  points = _points(config, dataset, encoded, path, seconds)
  options = config[name].to_dict()
  with _timed(seconds, name):
    result = _cluster(
      clusterer,
      name,
      jax.random.fold_in(key, _CLUSTERS),
      points['train'],
      options,
      path,
    )
  with _timed(seconds, 'score'):
    labels = {
      split: np.asarray(clusterer.predict(result, x))
      for split, x in points.items()
    }
    num_groups = options[clusterer.groups]
    _write_results(dataset, path, result, labels, points, num_groups)
    return _scores(dataset, clusterer, result, labels, points, num_groups)


def _run_sweep(config, dataset, path, seconds):
  """Clusters into each number of clusters, then scores all at once."""
  key = jax.random.key(config.seed)
  x = _points(config, dataset, config.encode, path, seconds)['train']
  counts = tuple(config.sweep.num_clusters)
  workdir.rewind_log(path, 'sweep', 'num_clusters', 0)
  records, labels = [], []
  sweep = selection.sweep(
    jax.random.fold_in(key, _CLUSTERS), x, **config.sweep.to_dict()
  )
  with _timed(seconds, 'sweep'), report.progress('sweep', len(counts)) as show:
    for record in sweep:
      labels.append(record.pop('labels'))
      workdir.log(path, phase='sweep', **record)
      records.append(record)
      show(len(records), f'{record["num_clusters"]} clusters')
  with _timed(seconds, 'silhouette'):
    scores = selection.silhouette(x, jnp.stack(labels), counts)
    for record, score in zip(records, scores.tolist(), strict=True):
      record['silhouette'] = score if np.isfinite(score) else None
  choices = selection.choose(records)
  report.sweep_figure(path / 'figures' / 'sweep.png', records, choices)
  return {'sweep': records, 'choices': choices}


def _run_benchmark(config, dataset, path, seconds):
  """Measures this code against its peers; writes benchmark.json."""
  key = jax.random.key(config.seed)
  images = jnp.asarray(dataset.images)
  options = config.benchmark.to_dict()
  workdir.rewind_log(path, 'benchmark', 'row', 0)
  rows = []
  with (
    _timed(seconds, 'benchmark'),
    report.progress('benchmark', benchmark.num_rows(**options)) as show,
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
  report.benchmark_figure(path / 'figures' / 'benchmark.png', rows)
  return results


def _points(config, dataset, encoded, path, seconds):
  """What is clustered: codes or pixels `[N, D]` of each split."""
  splits = {'train': dataset.images}
  if dataset.test_images is not None:
    splits['test'] = dataset.test_images
  splits = {split: jnp.asarray(images) for split, images in splits.items()}
  if not encoded:
    return {s: training.as_points(images) for s, images in splits.items()}
  key = jax.random.key(config.seed)
  with _timed(seconds, 'autoencoder'):
    model, params = _train_autoencoder(config, splits, key, path)
  with _timed(seconds, 'encode'):
    points = {
      split: training.encode(
        params, images, model=model, batch_size=config.training.batch_size
      )
      for split, images in splits.items()
    }
    if config.standardize:
      points = _standardize(points)
    return jax.block_until_ready(points)


def _train_autoencoder(config, splits, key, path):
  """Trains epoch by epoch; returns the network and its parameters."""
  options = config.training
  images = splits['train']
  num_images = len(images)
  model = autoencoder.Autoencoder(
    images.shape[1:], tuple(config.autoencoder.features)
  )
  state = training.init(jax.random.fold_in(key, _INIT), model)
  begun, state = workdir.restore(path, 'autoencoder', state) or (0, state)
  workdir.rewind_log(path, 'autoencoder', 'epoch', begun)
  saver = _Saver(path, 'autoencoder', begun)
  with report.progress('autoencoder', options.num_epochs) as show:
    for epoch in range(begun + 1, options.num_epochs + 1):
      start = time.perf_counter()
      state = training.train_steps(
        state,
        images,
        jax.random.fold_in(key, _ORDER),
        training.steps_per_epoch(num_images, options.batch_size),
        model=model,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
      )
      record = {'train_loss': float(state.loss_sum) / num_images}
      elapsed = time.perf_counter() - start
      if 'test' in splits:
        loss = training.mean_loss(
          state.params,
          splits['test'],
          model=model,
          batch_size=options.batch_size,
        )
        record['val_loss'] = float(loss)
      _check_losses(record, epoch, saver.last)
      record['seconds'] = round(elapsed, 3)
      workdir.log(path, phase='autoencoder', epoch=epoch, **record)
      saver.save(epoch, state, final=epoch == options.num_epochs)
      show(epoch, '  '.join(f'{k} {v:.5g}' for k, v in record.items()))
  return model, state.params


def _standardize(points):
  """Divides every feature by its standard deviation over the training split."""
  x = points['train']
  deviation = x.std(axis=0)
  rounding = jnp.finfo(x.dtype).eps * jnp.abs(x).max(axis=0)
  scale = jnp.where(deviation > 8 * rounding, deviation, 1)[None]
  return {split: x / scale for split, x in points.items()}


def _check_losses(record, epoch, saved):
  if not all(np.isfinite(loss) for loss in record.values()):
    kept = f'the checkpoint of epoch {saved} stands' if saved else 'none saved'
    raise RunError(
      f'the losses are {record} at epoch {epoch}: lower '
      f'config.training.learning_rate ({kept})'
    )


def _cluster(clusterer, name, key, x, options, path):
  """Steps all runs until they stop; returns the best."""
  module = clusterer.module
  run_options, start_options = _split(options)
  start = functools.partial(module.start, **start_options)
  restored = workdir.restore(path, name, jax.eval_shape(start, key, x))
  begun, state = restored or (0, start(key, x))
  workdir.rewind_log(path, name, 'step', begun)
  num_runs = len(state.num_steps)
  num_steps = _steps_per_call(
    num_runs * clusterer.operations(*x.shape, options[clusterer.groups])
  )
  saver = _Saver(path, name, begun)
  step = begun
  with report.progress(name, options['max_steps']) as show:
    while (state.stop_reason == StopReason.RUNNING).any():
      state, _ = module.run(state, x, num_steps, **run_options)
      step = int(state.num_steps.max())
      score = float(getattr(module.best(state), clusterer.score))
      workdir.log(path, phase=name, step=step, **{clusterer.score: score})
      saver.save(step, state)
      running = int((state.stop_reason == StopReason.RUNNING).sum())
      show(step, f'{clusterer.score} {score:.6g}  {running} running')
  saver.save(step, state, final=True)
  result = module.best(state)
  module.warn(result)
  return result


def _split(options):
  """Options of a clusterer's `run`, and those of its `start`."""
  ends = {k: options[k] for k in ('max_steps', 'tol') if k in options}
  start = {k: v for k, v in options.items() if k not in ends}
  ridge = {'reg': options['reg']} if 'reg' in options else {}
  return ends | ridge, start


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
    'seed': config.seed,
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


def _scores(dataset, clusterer, result, labels, points, num_groups):
  """Scores of each split that has labels, and of the fit."""
  summary = {}
  classes = {'train': dataset.labels, 'test': dataset.test_labels}
  for split, found in labels.items():
    if classes[split] is not None:
      summary[split] = metrics.scores(classes[split], found, num_groups)
  fit = {
    'stop_reason': StopReason(int(result.stop_reason)).name.lower(),
    'num_steps': int(result.num_steps),
    clusterer.score: float(getattr(result, clusterer.score)),
  }
  if isinstance(result, gmm.GMMResult):
    fit['bic'] = float(gmm.bic(result.params, points['train']))
  return summary | {'fit': fit}


def _write_results(dataset, path, result, labels, points, num_groups):
  arrays = {f'{split}_labels': found for split, found in labels.items()}
  if isinstance(result, gmm.GMMResult):
    for split, x in points.items():
      arrays[f'{split}_responsibilities'] = np.asarray(
        gmm.responsibilities(result.params, x)
      )
  workdir.write_arrays(path, 'assignments.npz', **arrays)
  losses = workdir.read_log(path, 'autoencoder')
  if losses:
    report.loss_curve(path / 'figures' / 'loss.png', losses)
  if dataset.labels is not None:
    report.confusion_figure(
      path / 'figures' / 'confusion.png',
      dataset.labels,
      labels['train'],
      num_groups,
      dataset.label_names,
    )


class _Saver:
  """Saves checkpoints of a phase, but not more often than it is worth."""

  def __init__(self, path, phase, begun):
    self.path, self.phase = path, phase
    self.last = begun
    self._time = time.monotonic()

  def save(self, step, state, final=False):
    """Saves if the last time was long ago, or if this is the final state."""
    due = time.monotonic() - self._time > _SECONDS_BETWEEN_CHECKPOINTS
    if step != self.last and (due or final):
      workdir.save(self.path, self.phase, step, state)
      self.last, self._time = step, time.monotonic()


def _check(config, dataset):
  """Checks all options against the data, before anything is compiled."""
  if config.experiment not in EXPERIMENTS:
    raise InputError(
      f'config.experiment is {config.experiment!r}: it must be one of '
      f'{", ".join(EXPERIMENTS)}'
    )
  if not 0 <= config.seed < 2**32:
    raise InputError(
      f'config.seed is {config.seed}: it must be at least 0 and below 2**32'
    )
  EXPERIMENTS[config.experiment].check(config, dataset)


def _check_pipeline(config, dataset):
  encoded, name = PIPELINES[config.experiment]
  num_features = _check_points(config, dataset, encoded)
  run_options, start_options = _split(config[name].to_dict())
  module = CLUSTERERS[name].module
  module.check_start(len(dataset.images), num_features, **start_options)
  module.check_steps(run_options['max_steps'], run_options['tol'])


def _check_sweep(config, dataset):
  num_features = _check_points(config, dataset, config.encode)
  options = config.sweep.to_dict()
  selection.check_options(len(dataset.images), num_features, **options)


def _check_benchmark(config, dataset):
  _check_images(dataset.images, True)
  options = config.benchmark.to_dict()
  benchmark.check_options(dataset.images.shape, **options)


def _check_points(config, dataset, encoded):
  """Checks all that comes before clustering; returns D."""
  for images in (dataset.images, dataset.test_images):
    _check_images(images, encoded)
  shape = dataset.images.shape[1:]
  if not encoded:
    return int(np.prod(shape))
  autoencoder.check_options(**config.autoencoder)
  training.check_options(**config.training)
  return autoencoder.code_size(shape, config.autoencoder.features)


def _check_images(images, encoded):
  """Checks the values of float images; bytes are always good."""
  if images is None or images.dtype == np.uint8:
    return
  numerics.check_points(images.reshape(len(images), -1))
  low, high = images.min(), images.max()
  if encoded and (low < 0 or high > 1):
    raise InputError(
      f'the images have values from {low:g} to {high:g}: the autoencoder '
      'takes floats from 0 to 1; rescale them, or give uint8'
    )


def _steps_per_call(operations):
  on_cpu = jax.default_backend() == 'cpu'
  budget = _CPU_OPERATIONS if on_cpu else _ACCELERATOR_OPERATIONS
  return int(np.clip(budget // operations, 1, 100))


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
def _timed(seconds: dict, phase: str) -> Iterator[None]:
  start = time.perf_counter()
  yield
  seconds[phase] = time.perf_counter() - start


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
  """Prints warnings as lines, and collects them."""
  messages = []

  def show(message, category, filename, lineno, file=None, line=None):
    del category, filename, lineno, file, line
    messages.append(str(message))
    report.say(f'warning: {message}')

  with warnings.catch_warnings():
    warnings.simplefilter('always', UserWarning)
    warnings.showwarning = show
    yield messages


def _show_scores(config, summary):
  report.closing_table(summary, config.get('reference', ConfigDict()))


_PIPELINE = Experiment(_check_pipeline, _run_pipeline, _show_scores)

EXPERIMENTS = {
  **dict.fromkeys(PIPELINES, _PIPELINE),
  'sweep': Experiment(
    _check_sweep,
    _run_sweep,
    lambda config, summary: report.sweep_table(
      summary['sweep'], summary['choices']
    ),
  ),
  'benchmark': Experiment(
    _check_benchmark,
    _run_benchmark,
    lambda config, summary: report.benchmark_table(
      summary['rows'], summary['limits']
    ),
  ),
}

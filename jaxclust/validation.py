"""Checks of a config's options, before anything compiles.

Axes: D features of a point.
"""

import difflib
import inspect
from typing import Any

import jax
import numpy as np

from jaxclust import checks, model, networks, plans
from jaxclust.algorithms.assignment import ALGORITHMS
from jaxclust.data import Dataset
from jaxclust.errors import InputError
from jaxclust.methods import METHODS
from jaxclust.report import page


def check_pipeline(config: Any, dataset: Dataset) -> None:
  """Checks all options, before anything compiles.

  Raises:
    InputError: if one cannot be used.
  """
  page.check_embedding(config.embedding)
  num_features = check_stages(config, dataset)
  name = config.clusterer
  if not name:
    _check_own_clusters(config, dataset.images.shape[1:])
    return
  checks.check_choice('config.clusterer', name, ALGORITHMS)
  if name not in config:
    raise InputError(
      f'config.clusterer is {name!r}, but there is no config.{name}: take a '
      'config that has one, or add it to yours'
    )
  options = config[name].to_dict()
  ALGORITHMS[name].check(len(dataset.images), num_features, **options)


def _check_own_clusters(config, image_shape):
  """Checks that the last method assigns images, if no clusterer does."""
  method = config.stages and model.method_of(
    model.make_recipe(config, image_shape)
  )
  if not method or method.assigner is None:
    raise InputError(
      f'config.clusterer is empty, and the stages {tuple(config.stages)} do '
      f'not assign images: name one of {", ".join(ALGORITHMS)}'
    )
  if config.standardize:
    raise InputError(
      f'config.standardize is True, but {config.stages[-1]} assigns its '
      'embeddings as they are: set it to False, or name a config.clusterer'
    )


def check_stages(config: Any, dataset: Dataset) -> int:
  """Checks images, network and training; returns D, the features of a point."""
  for images in (dataset.images, dataset.test_images):
    if images is not None:
      model.check_images(images, bool(config.stages))
  shape = dataset.images.shape[1:]
  if not config.stages:
    return int(np.prod(shape))
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
  return method.code_size


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
        f'config.{stage}.{name} is missing: take configs/{stage}.py, or add it '
        'to your config'
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

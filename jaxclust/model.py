"""A trained model: names, options and parameters that take images to clusters.

The run itself and whoever loads its model go the same way from images to
clusters, so that both see the same numbers.

Axes: N images, H height, W width, C channels, D features of a point,
K clusters.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxclust import encoding, networks, workdir
from jaxclust.algorithms import kmeans, neighbors, spreading
from jaxclust.algorithms.assignment import ALGORITHMS, Assigner, Assignment
from jaxclust.checks import check_count
from jaxclust.data.images import check_channels_last
from jaxclust.errors import InputError
from jaxclust.inputs import check_values, place
from jaxclust.methods import METHODS, Method, committee
from jaxclust.prefetch import ahead

# Platforms that an exported program runs on.
_PLATFORMS = ('cpu', 'cuda', 'tpu')

# Bytes of images that are sent to the device at once.
_BLOCK_BYTES = 2**26

# Number of outlier scores that stand for those of a run's images.
_RANKS = 1001

# Width of a run's range of values above which values from 0 to 1 are of another
# kind.
_SHARES_WIDTH = 16.0


class Model(NamedTuple):
  """Takes images to points, and points to clusters.

  Images are `[N, H, W, C]`, or `[N, H, W]` where C is 1: uint8, or floats in
  [0, 1]. All methods raise an InputError for images unlike those of the run.
  """

  recipe: dict  # names and options, as JSON has them
  clusters: Any  # what the assigner takes
  assigner: Assigner | None
  method: Method | None  # None where the pixels are the points
  params: Any  # of the method
  scale: Any  # [1, D] or [1, 1], that its embeddings are divided by
  manifold: neighbors.Manifold | None = None  # that gives points their places
  outliers: Any = None  # [Q] outlier scores of the run's images, evenly ranked
  # [2, Q] margins, and the confidence of images that have them; None: shares or
  # distances tell it.
  curve: Any = None

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return tuple(self.recipe['image_shape'])

  @property
  def centers(self) -> jax.Array:
    """Centers of the clusters, or means of a mixture, `[K, D]`."""
    return self.assigner.centers(self.clusters)

  @property
  def can_decode(self) -> bool:
    """Whether points have images."""
    decodes = self.method is None or self.method.decode is not None
    return decodes and self.manifold is None

  def encode(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Points `[N, D]` float32 of images."""
    return self._of_points(lambda x: x, images)

  def predict(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Clusters `[N]` int32 of images."""
    return self._of_points(self.assign, images)

  def responsibilities(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Probabilities `[N, K]` of the clusters given each image.

    Raises:
      InputError: if the clusters have none.
    """
    fn = self._needed('probabilities', 'responsibilities', 'distances')
    return self._of_points(functools.partial(fn, self.clusters), images)

  def distances(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Distances `[N, K]` of the images' points from the centers: Euclidean, or
    `1 - cos` if the clusters are those of the cosine metric."""
    metric = self.recipe['clusterer_options'].get('metric', 'euclidean')
    measure = functools.partial(kmeans.transform, self.centers, metric=metric)
    return self._of_points(measure, images)

  def assess(self, images: jax.Array | np.ndarray) -> Assignment:
    """Clusters of images, and how well each image fits its own."""
    return Assignment(*map(np.asarray, self._of_points(self.judge, images)))

  def percentile(self, outlier_score: np.ndarray) -> np.ndarray:
    """Percentiles `[N]` float32, from 0 to 100, of outlier scores `[N]` among
    those of the run's images; NaN if the run has kept none."""
    if self.outliers is None:
      return np.full(len(outlier_score), np.nan, np.float32)
    ranks = [
      np.searchsorted(self.outliers, outlier_score, side)
      for side in ('left', 'right')
    ]
    return np.mean(ranks, axis=0, dtype=np.float32) * 100 / len(self.outliers)

  def sample(self, key: jax.Array, num_samples: int) -> jax.Array:
    """Images `[num_samples, H, W, C]` of points drawn from the clusters.

    Raises:
      InputError: if the clusters are not a distribution.
    """
    draw = self._needed('sample', 'samples', 'decode(centers)')
    check_count('num_samples', num_samples)
    return self.decode(draw(key, self.clusters, num_samples))

  def decode(self, x: jax.Array) -> jax.Array:
    """Images `[N, H, W, C]` float32 of points `[N, D]`; those of a network lie
    in [0, 1].

    Raises:
      InputError: if the network only encodes, or points have places on a
        manifold.
    """
    x = jnp.asarray(x)
    if not self.can_decode:
      name = self.recipe['method'] or self.recipe['clusterer']
      raise InputError(
        f'this run of {name} has no images of points: look at the images that '
        'assess finds typical'
      )
    if self.method is None:
      return x.reshape(len(x), *self.image_shape)
    return jnp.clip(self.apply(encoding.decode, x * self.scale), 0, 1)

  def points(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Points `[N, D]` of images, unchecked, wherever these are."""
    if self.method is None:
      return self.place(encoding.as_points(jnp.asarray(images)))
    return self.place(self.apply(encoding.embed, images) / self.scale)

  def place(self, x: jax.Array) -> jax.Array:
    """The places of points on the manifold, if there is one."""
    if self.manifold is None:
      return x
    count = self.recipe['manifold']['num_neighbors']
    return neighbors.extend(self.manifold, x, count)

  def apply(self, fn: Callable, array: jax.Array | np.ndarray) -> jax.Array:
    """What a function of `encoding` makes of an array `[N, ...]`."""
    size = self.recipe['batch_size']
    return jnp.asarray(fn(self.method, self.params, array, size))

  def assign(self, x: jax.Array) -> jax.Array:
    """Clusters `[N]` int32 of points `[N, D]`."""
    return self.assigner.predict(self.clusters, x)

  def judge(self, x: jax.Array) -> Assignment:
    """The assignment of points `[N, D]`, on the host."""
    return self.calibrated(self.assigner.assign(self.clusters, x))

  def calibrated(self, found: Assignment) -> Assignment:
    """An assignment of points with the confidence that their margins have."""
    if self.curve is None:
      return found
    confidence = np.interp(found.margin, *self.curve).astype(np.float32)
    return found._replace(confidence=confidence)

  def _needed(self, field, what, instead):
    found = getattr(self.assigner, field)
    if found is None:
      name = self.recipe['clusterer'] or self.recipe['method']
      raise InputError(
        f'a run of {name} has no {what}: use {instead}, or load a run of a '
        'mixture'
      )
    return found

  def _of_points(self, fn, images):
    """`fn` of the points of images, a pytree of `[N, ...]`."""
    images = self._checked(images)
    size = max(1, _BLOCK_BYTES // max(1, images[:1].nbytes))
    parts = []
    for block in ahead(
      range(0, len(images), size),
      lambda start: jax.device_put(images[start : start + size]),
    ):
      self.check(block)
      parts.append(fn(self.points(block)))
    return jax.tree.map(lambda *p: jnp.concatenate(p), *parts)

  def check(self, images: jax.Array | np.ndarray) -> None:
    """Checks the values of images `[N, H, W, C]`.

    Raises:
      InputError: as `check_images` does; or if the values are of another kind
        than those that the run had.
    """
    check_images(images, self.method is not None)
    if 'values' not in self.recipe:
      return
    low, high = self.recipe['values']
    least, largest = float(images.min()), float(images.max())
    if images.dtype == np.uint8:
      least, largest = least / 255, largest / 255
    width = high - low or 1.0
    is_beyond = least < low - width or largest > high + width
    are_shares = least >= 0 and 0 < largest <= 1
    if is_beyond or (are_shares and width > _SHARES_WIDTH):
      raise InputError(
        f'the images have values from {least:g} to {largest:g} (bytes stand '
        f'for 0 to 1), and those of the run from {low:g} to {high:g}: rescale '
        'them, as the run had them'
      )

  def _checked(self, images):
    """Images of the run's shape; their values are checked later."""
    if getattr(images, 'dtype', None) is None:
      images = np.asarray(images)
    if images.ndim == 3 and self.image_shape[2] == 1:
      images = images[..., None]
    check_channels_last('images', images)
    if images.shape[1:] != self.image_shape or not images.shape[0]:
      raise InputError(
        f'images have shape {images.shape}: the run takes '
        f'{("N", *self.image_shape)}; resize them, or load another run'
      )
    if jnp.issubdtype(images.dtype, jnp.floating):
      return images.astype(np.float32)
    if images.dtype != np.uint8:
      raise InputError(
        f'images are {images.dtype}: give uint8, or floats as the run had them'
      )
    return images


def check_images(images: jax.Array | np.ndarray, encoded: bool) -> None:
  """Checks the values of images `[N, H, W, C]`; bytes are always good.

  Raises:
    InputError: if they are not finite, or out of the range that a network takes
      if they are to be encoded.
  """
  if images.dtype == np.uint8:
    return
  check_values(place(images.reshape(images.shape[0], -1)))
  low, high = images.min(), images.max()
  if encoded and (low < 0 or high > 1):
    raise InputError(
      f'the images have values from {low:.9g} to {high:.9g}: the network takes '
      'floats from 0 to 1; rescale them, or give uint8'
    )


def value_range(images: jax.Array | np.ndarray) -> tuple[float, float]:
  """The least and the largest value of images; bytes stand for 0 to 1."""
  if images.dtype == np.uint8:
    return 0.0, 1.0
  return float(images.min()), float(images.max())


def ranked(outlier_score: np.ndarray) -> np.ndarray:
  """Outlier scores `[Q]` that stand for those of N images, for `percentile`."""
  shares = np.linspace(0, 1, _RANKS)
  return np.quantile(outlier_score, shares).astype(np.float32)


def make_recipe(
  config: Any,
  image_shape: tuple[int, int, int],
  values: tuple[float, float] = (0.0, 1.0),
) -> dict:
  """The names and options of a config that a model is made of, and the range of
  the values of its images."""
  stages, clusterer = config.get('stages', ()), config.get('clusterer', '')
  recipe = {'image_shape': list(image_shape), 'clusterer': clusterer}
  recipe['values'] = list(values)
  recipe['clusterer_options'] = config[clusterer].to_dict() if clusterer else {}
  recipe['method'] = stages[-1] if stages else ''
  recipe['manifold'] = dict(config.get('manifold', {}))
  spread = dict(config.get('spread', {}))
  recipe['spread'] = spread if spread.get('num_neighbors') else {}
  if stages:
    recipe['network'] = config.network.to_dict()
    recipe['method_options'] = stage_options(config, stages[-1])[1]
    recipe['batch_size'] = config.training.batch_size
  return json.loads(json.dumps(recipe))


def stage_options(config: Any, stage: str) -> tuple[dict, dict]:
  """Options of the training of a stage, and those of its method.

  `config[stage]` holds both, if there are any: options of a training replace
  those of `config.training`.
  """
  training = config.training.to_dict()
  own = config[stage].to_dict() if stage in config else {}
  method = {name: v for name, v in own.items() if name not in training}
  return training | {n: v for n, v in own.items() if n in training}, method


def method_of(recipe: dict) -> Method | None:
  """The method of a recipe on its network, or of its members; None if it has
  none."""
  if members := recipe.get('members'):
    return committee(tuple(map(method_of, members)))
  if not recipe['method']:
    return None
  networks.check_options(**recipe['network'])
  network = networks.build(recipe['image_shape'], **recipe['network'])
  return METHODS[recipe['method']](network, **recipe['method_options'])


def assemble(
  recipe: dict,
  params: Any = None,
  scale: Any = None,
  clusters: Any = None,
  manifold: neighbors.Manifold | None = None,
  spread: spreading.Spread | None = None,
  outliers: Any = None,
  curve: Any = None,
) -> Model:
  """The model of a recipe from `make_recipe`.

  A method has parameters and a scale `[1, D]` or `[1, 1]`, a clusterer has
  clusters, which may have been spread.
  """
  method, assigner = method_of(recipe), None
  if recipe['clusterer']:
    options = recipe['clusterer_options']
    assigner = ALGORITHMS[recipe['clusterer']].assigner(options)
  elif method and method.assigner:
    assigner, clusters = method.assigner, method.clusters(params)
  if spread is not None:
    assigner = spreading.spreading(assigner, **recipe['spread'])
    clusters = clusters, spread
  return Model(
    *(recipe, clusters, assigner, method, params, scale, manifold),
    outliers=outliers,
    curve=curve,
  )


def export(model: Model, path: str | pathlib.Path) -> None:
  """Writes a program that needs JAX alone: uint8 images `[B, H, W, C]`, of any
  B, to their clusters `[B]` int32, on CPU, CUDA and TPU.

  `jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call(
  images)` runs it. All images of a call are one batch.
  """

  def predict(images):
    if model.method is None:
      x = encoding.as_points(images)
    else:
      pixels = encoding.as_pixels(images)
      x = model.method.embed(model.params, pixels) / model.scale
    return model.assign(model.place(x))

  shape = (*jax.export.symbolic_shape('b'), *model.image_shape)
  exported = jax.export.export(jax.jit(predict), platforms=_PLATFORMS)(
    jax.ShapeDtypeStruct(shape, jnp.uint8)
  )
  path = pathlib.Path(path)
  workdir.write(path.parent, path.name, exported.serialize())

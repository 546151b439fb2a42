"""A finished run put to use: from images to points, to clusters, and back.

A pipeline leaves `model.npz`, arrays that take an image to its cluster: the
network, the scale of the points, and centers or a mixture. Pipelines and who
loads a run go the same way, so that both see the same numbers.

Axes: N images, H height, W width, C channels, D features of a point,
K clusters.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxclust import (
  autoencoder,
  data,
  gmm,
  kmeans,
  numerics,
  streaming,
  training,
  workdir,
)
from jaxclust.autoencoder import Autoencoder
from jaxclust.fitting import CLUSTERERS, Encoder
from jaxclust.gmm import GMMParams
from jaxclust.numerics import InputError

FILE = 'model.npz'

# Of that file; another number is for another layout.
_FORMAT = 1

# Where an exported program runs.
_PLATFORMS = ('cpu', 'cuda', 'tpu')


class Assessment(NamedTuple):
  """What a model finds in each image."""

  labels: np.ndarray  # [N] int32
  # Of a mixture the largest responsibility; of k-means, which knows no
  # probabilities, 1 - a / b for the distances a and b from the nearest and the
  # second nearest center: 1 at a center, 0 halfway between two.
  confidence: np.ndarray  # [N] in [0, 1]
  # Of a mixture the surprise -log p(x); of k-means the distance.
  outlier_score: np.ndarray  # [N] higher is stranger
  distance: np.ndarray  # [N] of points to the center or mean of their cluster


class Model(NamedTuple):
  """What takes images to points, and points to clusters.

  Images are `[N, H, W, C]`, or `[N, H, W]` where C is 1: uint8, or floats in
  [0, 1]. NumPy's are sent to the device in blocks, those of JAX lie there. Each
  number of images is compiled for once.
  """

  image_shape: tuple[int, int, int]
  clusterer: str  # of `fitting.CLUSTERERS`
  clusters: Any  # centers [K, D] or GMMParams
  encoder: Encoder | None  # None where the pixels are the points

  @property
  def centers(self) -> jax.Array:
    """Centers of k-means or means of a mixture, `[K, D]`."""
    return CLUSTERERS[self.clusterer].centers(self.clusters)

  def encode(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Points `[N, D]` float32 of images.

    Raises:
      InputError: as all methods do, for images that are not like those of the
        run.
    """
    return self._of_points(lambda x: x, images)

  def predict(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Clusters `[N]` int32 of images."""
    return self._of_points(self.assign, images)

  def responsibilities(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Probabilities `[N, K]` of the clusters given each image.

    Raises:
      InputError: if the run is one of k-means, which has none.
    """
    self._check_mixture('responsibilities', 'distances')
    share = functools.partial(gmm.responsibilities, self.clusters)
    return self._of_points(share, images)

  def distances(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Euclidean distances `[N, K]` of the images' points from the centers."""
    measure = functools.partial(kmeans.transform, self.centers)
    return self._of_points(measure, images)

  def assess(self, images: jax.Array | np.ndarray) -> Assessment:
    """Clusters of images, and how well each image fits its own."""
    return Assessment(*map(np.asarray, self._of_points(self.judge, images)))

  def sample(self, key: jax.Array, num_samples: int) -> jax.Array:
    """Images `[num_samples, H, W, C]` of points drawn from the mixture.

    Raises:
      InputError: if the run is one of k-means, which is no distribution.
    """
    self._check_mixture('samples', 'decode(centers)')
    numerics.check_count('num_samples', num_samples)
    return self.decode(gmm.sample(key, self.clusters, num_samples))

  def decode(self, x: jax.Array) -> jax.Array:
    """Images `[N, H, W, C]` float32 of points `[N, D]`; those of a network lie
    in [0, 1]."""
    if self.encoder is None:
      return x.reshape(x.shape[0], *self.image_shape)
    return jnp.clip(self.encoder.decode(x), 0, 1)

  def assign(self, x: jax.Array) -> jax.Array:
    """Clusters `[N]` int32 of points `[N, D]`."""
    return CLUSTERERS[self.clusterer].predict(self.clusters, x)

  def judge(self, x: jax.Array) -> Assessment:
    """What `assess` finds, of points `[N, D]`."""
    labels = np.asarray(self.assign(x))
    distances = np.asarray(kmeans.transform(self.centers, x))
    confidence, outlier_score = CLUSTERERS[self.clusterer].judge(
      self.clusters, x, distances
    )
    distance = np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]
    return Assessment(labels, confidence, outlier_score, distance)

  def _of_points(self, fn, images):
    """`fn` of the points of images, a pytree of `[N, ...]`."""
    parts = []
    for block in streaming.blocks(self._checked(images)):
      check_images(block, self.encoder is not None)
      parts.append(fn(to_points(block, self.encoder)))
    return jax.tree.map(lambda *p: jnp.concatenate(p), *parts)

  def _checked(self, images):
    """Images of the run's shape, their values unseen."""
    if not isinstance(images, jax.Array):
      images = np.asarray(images)
    if images.ndim == 3 and self.image_shape[2] == 1:
      images = images[..., None]
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

  def _check_mixture(self, what, instead):
    if not isinstance(self.clusters, GMMParams):
      raise InputError(
        f'a run of k-means has no {what}: use {instead}, or load a run of a '
        'mixture'
      )


def to_points(
  images: jax.Array | np.ndarray, encoder: Encoder | None
) -> jax.Array:
  """Points `[N, D]` of images `[N, H, W, C]`: codes, or else pixels."""
  if encoder is None:
    return training.as_points(jnp.asarray(images))
  return encoder.encode(images)


def check_images(images: jax.Array | np.ndarray, encoded: bool) -> None:
  """Checks the values of images `[N, H, W, C]`; bytes are always good.

  Raises:
    InputError: if they are not finite, or out of the range that the network
      takes if they are to be encoded.
  """
  if images.dtype == np.uint8:
    return
  numerics.check_points(images.reshape(images.shape[0], -1))
  low, high = images.min(), images.max()
  if encoded and (low < 0 or high > 1):
    raise InputError(
      f'the images have values from {low:g} to {high:g}: the autoencoder '
      'takes floats from 0 to 1; rescale them, or give uint8'
    )


def save(path: pathlib.Path, model: Model) -> None:
  """Writes a model into a run directory, as arrays."""
  arrays = {'format': _FORMAT, 'image_shape': model.image_shape}
  if model.encoder is not None:
    network, params, scale, batch_size = model.encoder
    arrays |= flax.traverse_util.flatten_dict(params, sep='/')
    arrays |= {'features': network.features, 'batch_size': batch_size}
    arrays |= {'scale': scale}
  clusters = {'centers': model.clusters}
  if isinstance(model.clusters, GMMParams):
    clusters = model.clusters._asdict()
  workdir.write_arrays(path, FILE, **arrays, **clusters)


def load(path: str | pathlib.Path) -> Model:
  """Loads what a finished run has learned; its data are not needed.

  Args:
    path: the run directory.

  Raises:
    InputError: if there is no such directory, its run has not come to its end,
      or leaves no model, or the file is damaged.
  """
  if not str(path) or not pathlib.Path(path).expanduser().is_dir():
    raise InputError(
      f'the run {str(path)!r} is no directory: name one that a finished run '
      'has left, as runs/gmm-digits-...'
    )
  path = pathlib.Path(path).expanduser()
  file = path / FILE
  if not workdir.is_finished(path):
    raise InputError(
      f'{path} holds no finished run: run its command with --workdir={path} '
      'to the end'
    )
  if not file.exists():
    raise InputError(
      f'{path} holds no {FILE}: only runs of kmeans, ae_kmeans and gmm leave '
      'one; run one of these in another directory'
    )
  remedy = 'run its command again in another directory'
  arrays = data.read_npz(file, remedy)
  if not np.array_equal(arrays.get('format'), _FORMAT):
    raise InputError(
      f'{file} has format {arrays.get("format")}, and this version of jaxclust '
      f'reads format {_FORMAT}: {remedy}'
    )
  try:
    return _parse(arrays)
  except Exception as error:  # numbers may be of any size
    raise InputError(
      f'{file} holds no model ({numerics.one_line(error)}): {remedy}'
    ) from error


def _parse(arrays):
  """The model that arrays hold; raises all sorts of errors if they are none."""
  image_shape = _counts(arrays, 'image_shape')
  height, width, channels = image_shape
  num_features, encoder = height * width * channels, None
  if 'features' in arrays:
    encoder = _parse_encoder(arrays, image_shape)
    num_features = autoencoder.code_size(image_shape, encoder.model.features)
    if encoder.scale.shape not in ((1, 1), (1, num_features)):
      raise ValueError(f'scale is {encoder.scale.shape}')
  name = 'kmeans' if 'centers' in arrays else 'gmm'
  clusters = _parse_clusters(arrays, num_features)
  return Model(image_shape, name, clusters, encoder)


def _counts(arrays, name):
  """A tuple of the whole numbers, at least 1, that an array holds."""
  values = arrays[name].reshape(-1).tolist()
  return tuple(numerics.check_count(name, value) for value in values)


def _parse_encoder(arrays, image_shape):
  """A network with its variables, and the scale of its codes."""
  network = Autoencoder(image_shape, _counts(arrays, 'features'))
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = flax.traverse_util.flatten_dict(
    jax.eval_shape(network.init, key, images), sep='/'
  )
  params = {name: _array(arrays, name, a.shape) for name, a in shapes.items()}
  params = flax.traverse_util.unflatten_dict(params, sep='/')
  scale = _array(arrays, 'scale', arrays['scale'].shape)
  (batch_size,) = _counts(arrays, 'batch_size')
  return Encoder(network, params, scale, batch_size)


def _parse_clusters(arrays, num_features):
  """Centers, or the parameters of a mixture."""
  one = 'centers' if 'centers' in arrays else 'means'
  num_clusters = numerics.check_count(f'number of {one}', len(arrays[one]))
  shape = (num_clusters, num_features)
  if one == 'centers':
    return _array(arrays, 'centers', shape)
  found = arrays['scale_tril'].shape
  shapes = [family.shape(*shape) for family in gmm.FAMILIES.values()]
  return GMMParams(
    _array(arrays, 'log_weights', (num_clusters,)),
    _array(arrays, 'means', shape),
    _array(arrays, 'scale_tril', found if found in shapes else shapes[0]),
  )


def _array(arrays, name, shape):
  """An array of floats of that shape."""
  array = arrays[name]
  if array.shape != shape or array.dtype.kind != 'f':
    raise ValueError(
      f'{name} is {array.dtype} {array.shape}, and not float {shape}'
    )
  return jnp.asarray(array)


def typical(
  found: Assessment, num_clusters: int, count: int
) -> tuple[list[np.ndarray], list[str]]:
  """The images that fit each of K clusters best, the best first.

  Args:
    found: of N images.
    num_clusters: K.
    count: of rows of a cluster at most.

  Returns:
    Rows of the images of each cluster, and a title with how many it has.
  """
  labels = np.asarray(found.labels)
  order = np.argsort(found.outlier_score, kind='stable')
  members = [order[labels[order] == k] for k in range(num_clusters)]
  titles = [f'{k} ({len(rows):,})' for k, rows in enumerate(members)]
  return [rows[:count] for rows in members], titles


def write_table(
  path: pathlib.Path, found: dict[str, Assessment], files: Sequence[str]
) -> None:
  """Writes `predictions.csv` into a run directory: a row for each image.

  Args:
    path: the run directory.
    found: in the images of each split.
    files: names of all images; if empty, each is called `split/number`.
  """
  names = files or [
    f'{split}/{row}' for split, a in found.items() for row in range(len(a[0]))
  ]
  columns = Assessment(*map(np.concatenate, zip(*found.values(), strict=True)))
  columns = columns._asdict()
  columns = {'file': names, 'cluster': columns.pop('labels'), **columns}
  workdir.write_table(path, 'predictions.csv', columns)


def export(model: Model, path: str | pathlib.Path) -> None:
  """Writes a program that needs JAX alone: uint8 images `[B, H, W, C]`, of any
  B, to their clusters `[B]` int32, on CPU, CUDA and TPU.

  `jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call(
  images)` runs it. All images of a call are one batch.
  """

  def predict(images):
    encoder = model.encoder
    if encoder is not None:
      encoder = encoder._replace(batch_size=images.shape[0])
    return model.assign(to_points(images, encoder))

  shape = (*jax.export.symbolic_shape('b'), *model.image_shape)
  exported = jax.export.export(jax.jit(predict), platforms=_PLATFORMS)(
    jax.ShapeDtypeStruct(shape, jnp.uint8)
  )
  path = pathlib.Path(path)
  workdir.write_bytes(path.parent, path.name, exported.serialize())

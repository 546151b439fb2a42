"""Maps: places of points in the plane.

Axes: N points, D features, n points that a map is fitted to.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxclust.checks import check_choice
from jaxclust.errors import InputError
from jaxclust.report import figures

# Maximum number of points that a map is fitted to.
_FITTED = 1500


class Embedding(NamedTuple):
  """A way to place points on the map."""

  title: str
  fit: Callable  # points [n, D] -> function of points [N, D] -> places [N, 2]
  module: str | None = None  # package that the extra of the same name installs


def principal_components(x: np.ndarray) -> Callable:
  """Places along the two directions of largest variance of points `[n, D]`; a
  missing direction has coordinates 0.

  >>> place = principal_components(np.array([[0.0], [2.0]]))
  >>> abs(place(np.array([[1.0], [4.0]]))).round(6).tolist()
  [[0.0, 0.0], [3.0, 0.0]]
  """
  mean = x.mean(axis=0, dtype=np.float64)
  *_, directions = np.linalg.svd(x - mean, full_matrices=False)
  directions = directions[:2].T
  missing = 2 - directions.shape[1]

  def place(others):
    found = others @ directions.astype(others.dtype) - mean @ directions
    return np.pad(found, ((0, 0), (0, missing)))

  return place


def neighbor_embedding(x: np.ndarray) -> Callable:
  """Places that keep near points together, by t-SNE of points `[n, D]` (van der
  Maaten & Hinton, 2008, Visualizing Data using t-SNE); other points go to their
  neighbours among these."""
  import openTSNE

  perplexity = min(30.0, (len(x) - 1) / 3)
  options = {'random_state': 0, 'n_jobs': 1}
  fitted = openTSNE.TSNE(perplexity=perplexity, **options).fit(x)

  def place(others):
    if np.array_equal(others, x):
      return np.asarray(fitted)
    return np.asarray(fitted.transform(others, perplexity=min(5, perplexity)))

  return place


EMBEDDINGS = {
  'pca': Embedding('principal components', principal_components),
  'tsne': Embedding('t-SNE', neighbor_embedding, 'openTSNE'),
}


def evenly(num_points: int, most: int) -> np.ndarray:
  """Numbers of at most so many points, evenly spaced."""
  count = min(most, num_points)
  return np.linspace(0, num_points - 1, count).astype(int)


def shown(num_points: int) -> np.ndarray:
  """Numbers `[n]` of the points that maps are fitted to."""
  return evenly(num_points, _FITTED)


def locate(points: dict[str, Any], embedding: str) -> dict[str, dict]:
  """Places on each map, 'pca' first and the chosen embedding last.

  Args:
    points: of each split, `[N, D]`; maps are fitted to some of the first.
    embedding: a key of `EMBEDDINGS`.

  Returns:
    map -> split -> places `[N, 2]`; a map that fails is a warning, and absent.
  """
  points = {split: np.asarray(x) for split, x in points.items()}
  first, x = next(iter(points.items()))
  rows = shown(len(x))
  found = {}
  for name in dict.fromkeys(('pca', embedding)):
    with figures.drawing(f'the map by {name}'):
      place = EMBEDDINGS[name].fit(x[rows])
      places = {split: place(own) for split, own in points.items()}
      places[first][rows] = place(x[rows])
      found[name] = places
  return found


def check_embedding(embedding: str) -> None:
  """Checks that an embedding exists and that its package is installed.

  Raises:
    InputError: if not.
  """
  check_choice('embedding', embedding, EMBEDDINGS)
  module = EMBEDDINGS[embedding].module
  if module and importlib.util.find_spec(module) is None:
    raise InputError(
      f'embedding is {embedding!r}, but {module} is not installed: '
      f"pip install '.[{embedding}]', or take 'pca'"
    )

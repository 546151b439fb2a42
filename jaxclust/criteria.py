"""Scores of several runs without labels.

A run looks best in its own embedding: silhouettes and probes are of what the
other runs have learned, and changed images are as new to a run as to others.

Axes: S runs, N images, H height, W width, C channels, D numbers of an
embedding, K clusters.

Reference:
  Wang and Ye (2024), Deep clustering evaluation: how to validate internal
    clustering validation measures, https://arxiv.org/abs/2403.14830
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.linear_model

from jaxclust import selection
from jaxclust.data import augment
from jaxclust.encoding import as_pixels
from jaxclust.frames import unit_rows
from jaxclust.model import Model

# Options of `augment` for images that are changed as in few trainings: up to a
# pixel of blur, up to a fifth erased.
_UNSEEN = {'blur': 1.0, 'erase': 0.2}

# Number of images whose views are drawn at once.
_BLOCK = 500


def silhouettes(
  embeddings: Sequence[np.ndarray], labels: np.ndarray, num_clusters: int
) -> list[float | None]:
  """The mean silhouette of each run's clusters in the others' embeddings, whose
  rows have length one and stand beside each other.

  Args:
    embeddings: of each run `[N, D]`, two at least.
    labels: `[S, N]` int32.
    num_clusters: K.

  Returns:
    `[S]`; None where all images are in one cluster.
  """
  scores = [
    float(selection.silhouette(x, own[None], [num_clusters])[0])
    for own, x in zip(labels, _of_others(embeddings), strict=True)
  ]
  return [score if np.isfinite(score) else None for score in scores]


def probes(
  embeddings: Sequence[np.ndarray], labels: np.ndarray
) -> list[float | None]:
  """The share of images whose cluster a linear classifier finds in the others'
  embeddings: of every second image, taught by the images between.

  Args:
    embeddings: of each run `[N, D]`, two at least.
    labels: `[S, N]` int32.

  Returns:
    `[S]`; None where those that teach are in one cluster.
  """
  scores = []
  for own, x in zip(labels, _of_others(embeddings), strict=True):
    taught = len(set(own[::2])) > 1
    probe = sklearn.linear_model.RidgeClassifier()
    scores.append(
      float(probe.fit(x[::2], own[::2]).score(x[1::2], own[1::2]))
      if taught
      else None
    )
  return scores


def _of_others(embeddings: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
  """For each run what the others have learned, with rows of length one."""
  parts = [np.asarray(unit_rows(jnp.asarray(x))) for x in embeddings]
  for run in range(len(parts)):
    others = parts[:run] + parts[run + 1 :]
    yield np.concatenate(others, axis=1) / np.float32(np.sqrt(len(others)))


def steadiness(
  runs: Sequence[Model],
  images: np.ndarray,
  labels: np.ndarray,
  trained_with: set[str],
) -> list[float | None]:
  """The share of images that each run leaves in their clusters when they are
  blurred and partly erased.

  Args:
    runs: S models.
    images: `[N, H, W, C]`.
    labels: `[S, N]` int32, of the images as they are.
    trained_with: names of options of `augment` that a run has trained with;
      images are not changed so.

  Returns:
    `[S]`; None where no change is left.
  """
  options = {k: v for k, v in _UNSEEN.items() if k not in trained_with}
  if not options:
    return [None] * len(runs)
  changes = augment.from_options(**options)

  @jax.jit
  def views_of(numbers, some):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)
    views = augment.augment(keys, as_pixels(some), changes)[0]
    return jnp.round(255 * views[:, 0]).astype(jnp.uint8)

  starts = range(0, len(images), _BLOCK)
  blocks = [images[start : start + _BLOCK] for start in starts]
  views = np.concatenate(
    [
      views_of(start + np.arange(len(some)), some)
      for start, some in zip(starts, blocks, strict=True)
    ]
  )
  return [
    float((np.asarray(run.predict(views)) == own).mean())
    for run, own in zip(runs, labels, strict=True)
  ]

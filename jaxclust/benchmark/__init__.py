"""This code against its peers: the same arrays and starts, in one run.

The contestants of a row take turns, so that other load on the machine falls on
all alike. Each row also states the time that the plain algorithm needs at the
machine's own speed: that of a large matrix product, or of a large copy,
measured in the same run.

Axes: N images, H height, W width, C channels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxclust import checks
from jaxclust.benchmark.clusters import KMEANS, MIXTURES
from jaxclust.benchmark.contest import MismatchError, measure, measure_limits
from jaxclust.benchmark.network import LAYERS, TRAINING
from jaxclust.benchmark.peers import versions
from jaxclust.errors import InputError

__all__ = [
  'GROUPS',
  'MismatchError',
  'check_options',
  'num_rows',
  'run',
  'versions',
]

# Name -> its rows, and the name of their options.
GROUPS = {
  'kmeans': (KMEANS, 'kmeans'),
  'mixtures': (MIXTURES, 'mixtures'),
  'autoencoder': (TRAINING, 'autoencoder'),
  'layers': (LAYERS, 'autoencoder'),
}


def check_options(
  image_shape: Sequence[int],
  *,
  groups: Sequence[str],
  rounds: int,
  limit_size: int,
  **options: dict,
) -> None:
  """Checks the options of `run` against the shape `[N, H, W, C]` of images.

  Raises:
    InputError: if they do not fit.
  """
  if set(groups) - set(GROUPS) or not groups:
    raise InputError(
      f'groups are {tuple(groups)}: name some of {", ".join(GROUPS)}'
    )
  checks.check_count('rounds', rounds)
  checks.check_count('limit_size', limit_size)
  for group, name in GROUPS.values():
    group.check(image_shape, **options[name])


def num_rows(groups: Sequence[str], **options: Any) -> int:
  """How many rows `run` yields with these options, beside the limits."""
  found = [GROUPS[name] for name in groups]
  return sum(group.num_rows(**options[name]) for group, name in found)


def run(
  key: jax.Array,
  images: jax.Array,
  *,
  groups: Sequence[str],
  rounds: int,
  limit_size: int,
  **options: dict,
) -> Iterator[dict]:
  """Measures row by row.

  Args:
    key: a JAX random key, for the starts.
    images: `[N, H, W, C]` uint8, or floats in [0, 1].
    groups: of `GROUPS`, which rows to measure.
    rounds: turns of each contestant.
    limit_size: rows of the matrices whose product is timed.
    **options: 'kmeans', 'mixtures' and 'autoencoder', the arguments of the
      contests in `clusters` and `network`.

  Yields:
    First the limits of the machine, as `Limits._asdict`, then a record for each
    row: name, seconds of every turn by contestant, medians, ratios of a peer's
    seconds to ours (median, least and largest of the rounds), objectives, the
    limit in seconds, and its share of our time.

  Raises:
    MismatchError: if a peer reached another objective.
  """
  limits = measure_limits(limit_size)
  yield limits._asdict()
  for group, name in map(GROUPS.get, groups):
    for contest in group.contests(key, images, **options[name]):
      yield measure(contest, rounds, limits)

"""This code against its peers: the same arrays and starts, in one run.

The contestants of a row take turns, so that other load on the machine falls on
all alike. Each row also states the time that the plain algorithm needs at the
machine's own speed: that of a large matrix product, or of a large copy,
measured in the same run.

Axes: N images, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence

from jaxclust import checks
from jaxclust.benchmark.clusters import plan_kmeans, plan_mixtures
from jaxclust.benchmark.contest import MismatchError, measure, measure_limits
from jaxclust.benchmark.latency import plan_latency
from jaxclust.benchmark.network import plan_layers, plan_training
from jaxclust.benchmark.peers import versions
from jaxclust.benchmark.scaling import plan_scaling
from jaxclust.errors import InputError

__all__ = [
  'GROUPS',
  'MismatchError',
  'measure',
  'measure_limits',
  'plan',
  'versions',
]

# Name -> what plans its rows, and the name of their options.
GROUPS = {
  'kmeans': (plan_kmeans, 'kmeans'),
  'mixtures': (plan_mixtures, 'mixtures'),
  'autoencoder': (plan_training, 'autoencoder'),
  'layers': (plan_layers, 'autoencoder'),
  'scaling': (plan_scaling, 'scaling'),
  'latency': (plan_latency, 'latency'),
}


def plan(
  image_shape: Sequence[int],
  *,
  groups: Sequence[str],
  rounds: int,
  patience: float,
  limit_size: int,
  **options: dict,
) -> list[Callable]:
  """What makes the contest of each row, from a random key and the images.

  Args:
    image_shape: `[N, H, W, C]` of images that are uint8, or floats in [0, 1].
    groups: of `GROUPS`, which rows to measure.
    rounds: turns of each contestant.
    patience: seconds of a row after which no further round begins.
    limit_size: rows of the matrices whose product is timed.
    **options: 'kmeans', 'mixtures', 'autoencoder', 'scaling' and 'latency', the
      options of the functions in `GROUPS`.

  Raises:
    InputError: if the options do not fit the images.
  """
  if set(groups) - set(GROUPS) or not groups:
    raise InputError(
      f'groups are {tuple(groups)}: name some of {", ".join(GROUPS)}'
    )
  checks.check_count('rounds', rounds)
  checks.check_number('patience', patience)
  checks.check_count('limit_size', limit_size)
  rows = {
    group: make(image_shape, **options[name])
    for group, (make, name) in GROUPS.items()
  }
  return [row for group in groups for row in rows[group]]

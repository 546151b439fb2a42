"""Points, and places for them, that tests of several modules share."""

import jax
import numpy as np
import sklearn.datasets
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.metrics import adjusted_rand_score


def blobs(num_points=300, num_features=5, num_clusters=4, spread=1.0, seed=0):
  """Gaussian clusters of points `[N, D]`, and the labels `[N]`."""
  x, labels = sklearn.datasets.make_blobs(
    num_points, num_features, centers=num_clusters, cluster_std=spread,
    random_state=seed,
  )  # fmt: skip
  return x.astype(np.float32), labels


def same_partition(a, b):
  """Whether labels `[N]` are the same but for their names."""
  return adjusted_rand_score(a, b) == 1


def two_devices(axis_type=AxisType.Auto):
  """A mesh of the two devices of the tests."""
  return jax.make_mesh((2,), ('rows',), axis_types=(axis_type,))


def sharded(x, mesh=None, *spec):
  """An array whose rows two devices share, unless the spec differs."""
  spec = PartitionSpec(*(spec or ('rows',)))
  return jax.device_put(x, NamedSharding(mesh or two_devices(), spec))

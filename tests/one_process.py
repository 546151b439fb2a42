"""One of the processes of `processes_test`, which share the rows of fits."""

import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclust import checks, gmm, kmeans
from jaxclust.errors import InputError

# Name of a fit -> what makes it: (key, x [N, D], weight [N]) -> result.
FITS = {
  'k-means': lambda key, x, weight: kmeans.fit(
    key, x, num_clusters=4, num_restarts=2, sample_weight=weight
  ),
  'k-means||': lambda key, x, weight: kmeans.fit(
    key, x, num_clusters=4, num_restarts=1, init='k-means||', metric='cosine'
  ),
  'tied': lambda key, x, weight: gmm.fit(
    *(key, x),
    num_components=4,
    num_restarts=1,
    covariance='tied',
    sample_weight=weight,
  ),
}


def arrays_of(name, result):
  """What is compared of the result of a fit."""
  if isinstance(result, kmeans.KMeansResult):
    return {f'{name} centers': result.centers, f'{name} counts': result.counts}
  parts = zip(('weights', 'means', 'tril'), result.params, strict=True)
  return {f'{name} {part}': array for part, array in parts}


def main(process, count, port, folder):
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', count, process)
  mesh = Mesh(np.array(jax.devices()), ('rows',))
  by_rows = NamedSharding(mesh, PartitionSpec('rows'))
  with np.load(f'{folder}/points.npz') as arrays:
    x, weight = arrays['x'], arrays['weight']

  def share(x):
    own = np.array_split(x, count)[process]
    return jax.make_array_from_process_local_data(by_rows, own)

  key, found = jax.random.key(0), {}
  for name, fit in FITS.items():
    result = fit(key, share(x), weight)
    found |= arrays_of(name, result)
  labels = kmeans.predict(found['k-means centers'], share(x))
  found['labels'] = checks.fetch(labels)
  own = np.array_split(x, count)[process]  # of NumPy: each process alone
  found['own labels'] = kmeans.predict(found['k-means centers'], own)
  x[-1, 0] = np.nan
  try:
    kmeans.fit(key, share(x), num_clusters=2)
  except InputError as error:
    found['error'] = str(error)
  np.savez(f'{folder}/{process}.npz', **found)


if __name__ == '__main__':
  main(*map(int, sys.argv[1:4]), sys.argv[4])

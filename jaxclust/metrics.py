"""Agreement of a clustering with labels that it has not seen.

Classes may have any names: numbers with gaps, negative numbers or strings.
Their number may differ from that of the clusters.

Axes: N points, C classes, K clusters.

Reference:
  Hubert and Arabie (1985), Comparing partitions,
    https://doi.org/10.1007/BF01908075
"""

import numpy as np
import sklearn.metrics
from scipy import optimize


def scores(classes: np.ndarray, labels: np.ndarray, num_clusters: int) -> dict:
  """Scores a clustering `[N]`, 0 to K - 1, against the true classes `[N]`.

  Returns:
    'ari': the adjusted Rand index.
    'nmi', 'ami': the normalised and the adjusted mutual information.
    'v_measure': equal to 'nmi', which divides by the mean of both entropies.
    'acc': the share of points in the class that the best one-to-one matching
      gives their cluster.
    'purity': the share of points in the largest class of their cluster.
    'cluster_purity': the same for each cluster, a list of K; 0 if it is empty.

  Raises:
    IndexError: if a label is not below K.

  >>> scores(np.array(['a', 'a', 'b', 'b']), np.array([0, 0, 1, 2]), 3)['acc']
  0.75
  """
  classes = np.unique(classes, return_inverse=True)[1]
  table = confusion(classes, labels, num_clusters)
  matched = optimize.linear_sum_assignment(table, maximize=True)
  largest = table.max(axis=0)
  sizes = np.maximum(table.sum(axis=0), 1)
  return {
    'ari': float(sklearn.metrics.adjusted_rand_score(classes, labels)),
    'nmi': float(sklearn.metrics.normalized_mutual_info_score(classes, labels)),
    'ami': float(sklearn.metrics.adjusted_mutual_info_score(classes, labels)),
    'v_measure': float(sklearn.metrics.v_measure_score(classes, labels)),
    'acc': float(table[matched].sum() / table.sum()),
    'purity': float(largest.sum() / table.sum()),
    'cluster_purity': (largest / sizes).tolist(),
  }


def confusion(
  classes: np.ndarray, labels: np.ndarray, num_clusters: int
) -> np.ndarray:
  """Returns counts `[C, K]` of points by sorted true class and by cluster.

  >>> confusion(np.array(['b', 'a', 'b']), np.array([0, 1, 0]), 2)
  array([[0, 1],
         [2, 0]])
  """
  names, rows = np.unique(classes, return_inverse=True)
  table = np.zeros((len(names), num_clusters), np.int64)
  np.add.at(table, (rows, labels), 1)
  return table


def over_seeds(rows: list[dict]) -> dict:
  """Mean and standard deviation of the scores of several seeds.

  Purities are compared by rank, as clusters have no common order. The mean of a
  score is over the seeds that have it. A row has a seed and nested dicts of its
  scores.

  Returns:
    The rows as 'seeds', and 'mean' and 'std' of their numbers.
  """

  def over(fn, values):
    first = values[0]
    if isinstance(first, dict):
      keys = dict.fromkeys(k for v in values for k in v)
      found = {k: over(fn, [v[k] for v in values if k in v]) for k in keys}
      return {k: v for k, v in found.items() if v is not None}
    if isinstance(first, list):
      return fn(np.sort(values), axis=0).tolist()
    return float(fn(values)) if isinstance(first, int | float) else None

  numbers = [{k: v for k, v in row.items() if k != 'seed'} for row in rows]
  return {
    'seeds': rows,
    'mean': over(np.mean, numbers),
    'std': over(np.std, numbers),
  }

"""How well a clustering agrees with labels that it has not seen.

Classes may be any labels, with gaps, negative or strings, and more or fewer
than the clusters. scikit-learn's functions where it has them.

Axes: N points, C classes, K clusters.

Reference:
  Hubert and Arabie (1985), Comparing partitions,
    https://doi.org/10.1007/BF01908075
"""

import numpy as np
import sklearn.metrics
from scipy import optimize


def scores(classes: np.ndarray, labels: np.ndarray, num_clusters: int) -> dict:
  """Scores a clustering against the true classes.

  Args:
    classes: `[N]` true classes.
    labels: `[N]` clusters, 0 to K - 1.
    num_clusters: K.

  Returns:
    'ari' (adjusted Rand index), 'nmi' and 'ami' (normalised and adjusted mutual
    information), 'v_measure', 'acc' (share of points that the best one-to-one
    matching of clusters and classes gets right), 'purity' (share of points in
    the largest class of their cluster) and 'cluster_purity' (a list of K; 0 for
    a cluster without points).
  """
  classes = np.unique(classes, return_inverse=True)[1]
  table = confusion(classes, labels, num_clusters)
  rows, columns = match(table)
  largest = table.max(axis=0)
  sizes = np.maximum(table.sum(axis=0), 1)
  return {
    'ari': float(sklearn.metrics.adjusted_rand_score(classes, labels)),
    'nmi': float(sklearn.metrics.normalized_mutual_info_score(classes, labels)),
    'ami': float(sklearn.metrics.adjusted_mutual_info_score(classes, labels)),
    'v_measure': float(sklearn.metrics.v_measure_score(classes, labels)),
    'acc': float(table[rows, columns].sum() / table.sum()),
    'purity': float(largest.sum() / table.sum()),
    'cluster_purity': (largest / sizes).tolist(),
  }


def confusion(
  classes: np.ndarray, labels: np.ndarray, num_clusters: int
) -> np.ndarray:
  """Counts `[C, K]` of points by true class, in sorted order, and cluster."""
  names, rows = np.unique(classes, return_inverse=True)
  table = np.zeros((len(names), num_clusters), np.int64)
  np.add.at(table, (rows, labels), 1)
  return table


def match(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of class and cluster that hold the most points, one to one.

  Args:
    table: `[C, K]` counts.

  Returns:
    min(C, K) classes in rising order, and the cluster of each.
  """
  return optimize.linear_sum_assignment(table, maximize=True)

"""A script that tells how long the first call of a library takes.

  python first_call.py WORK LIBRARY [FOLDER]

It prints the seconds of the work, the import apart, and its objective. It runs
in a process of its own, on data that scikit-learn ships, and imports no other
library. Compiled programs are kept in the folder, if there is one.
"""

import sys
import time
import warnings


def _import_jaxclust():
  from jaxclust.estimators import GaussianMixture, KMeans

  return KMeans, GaussianMixture


def _import_sklearn():
  from sklearn.cluster import KMeans
  from sklearn.mixture import GaussianMixture

  return KMeans, GaussianMixture


def _kmeans(x, estimator, _, num_clusters=3):
  return estimator(num_clusters, n_init=10, random_state=0).fit(x).inertia_


def _mixture(x, _, estimator):
  return estimator(3, random_state=0).fit(x).lower_bound_


def _many_clusters(x, estimator, _):
  return sum(_kmeans(x, estimator, _, k) for k in range(2, 9))


def _many_rows(x, estimator, _):
  return sum(_kmeans(x[:n], estimator, _) for n in (101, 111, 121, 131, 141))


def _search(x, _, estimator):
  from sklearn.model_selection import GridSearchCV

  options = {
    'n_components': range(1, 7),
    'covariance_type': ['full', 'tied', 'diag', 'spherical'],
  }
  found = GridSearchCV(estimator(random_state=0), options, cv=5).fit(x)
  return found.best_score_


# Name of each work, the function that does it, and largest relative gap of
# objectives.
WORK = {
  'import': ('import', None, 0.0),
  'kmeans': ('KMeans(3, n_init=10), 150 x 4', _kmeans, 1e-3),
  'mixture': ('GaussianMixture(3), 150 x 4', _mixture, 0.05),
  'clusters': ('KMeans of 2 to 8 clusters', _many_clusters, 0.02),
  'rows': ('KMeans of 101, 111, ... 141 rows', _many_rows, 1e-3),
  'search': ('GridSearchCV of 120 mixtures', _search, 0.1),
}
LIBRARIES = {'jaxclust': _import_jaxclust, 'scikit-learn': _import_sklearn}


def main(work: str, library: str, folder: str | None = None) -> None:
  """Does the work and prints seconds and objective."""
  begin = time.perf_counter()
  estimators = LIBRARIES[library]()
  seconds, objective = time.perf_counter() - begin, 0.0
  _, do, _ = WORK[work]
  if folder:
    from jaxclust.runtime import keep_programs

    keep_programs(folder)
  if do:
    from sklearn.datasets import load_iris

    x = load_iris().data.astype('float32')
    begin = time.perf_counter()
    objective = do(x, *estimators)
    seconds = time.perf_counter() - begin
  print(seconds, objective)


if __name__ == '__main__':
  warnings.simplefilter('ignore')
  main(*sys.argv[1:])

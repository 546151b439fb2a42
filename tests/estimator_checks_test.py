"""Estimators are what scikit-learn's checks ask of one."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxclust.estimators import GaussianMixture, KMeans, MiniBatchKMeans

pytestmark = pytest.mark.usefixtures('light_compiler')

# Small estimators: each check has shapes of its own, to be compiled.
CHECKED = [
  KMeans(2, init='random', n_init=1, max_iter=20),
  MiniBatchKMeans(2, init='random', n_init=1, max_iter=20),
  GaussianMixture(
    2, covariance_type='diag', init_params='random_from_data', max_iter=20
  ),
]
REDRAWN = {
  f'check_sample_weight_equivalence_on_{kind}_data': (
    'starts are drawn anew where rows are repeated; see estimators_test'
  )
  for kind in ('dense', 'sparse')
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
  'ignore::sklearn.exceptions.ConvergenceWarning',
  'ignore::sklearn.exceptions.SkipTestWarning',
)
@parametrize_with_checks(
  CHECKED, expected_failed_checks=lambda estimator: REDRAWN
)
def test_an_estimator_is_what_scikit_learn_asks_of_one(estimator, check):
  check(estimator)

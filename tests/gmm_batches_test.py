"""Mixtures of data that come in mini-batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import FAMILIES, KEY, clusters

from jaxclust import gmm
from jaxclust.algorithms import em
from jaxclust.algorithms.solver import StopReason
from jaxclust.errors import InputError

X = clusters(apart=2.0)[0]


def start(x=X, **options):
  return gmm.start(KEY, x, num_components=3, **options)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_a_batch_of_all_points_is_a_step_of_em(covariance):
  state = start(covariance=covariance)
  batch = gmm.update(state, X, decay=0.0)
  step, _ = gmm.run(state, X, 1)
  chex.assert_trees_all_close(batch.params, step.params, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(batch.objective, state.objective, rtol=1e-5)


@pytest.mark.parametrize('covariance', FAMILIES)
def test_moments_of_batches_add_up(covariance):
  """Without forgetting they are those of both batches, about the new means."""
  state = start(X[:200], covariance=covariance, init='random')
  new = gmm.update(state, X[200:], decay=1.0)
  old, moved = (em.first_run(s.params.params) for s in (state, new))
  x, weight = state.frame.apply(jnp.asarray(X)), jnp.ones(len(X))
  prepared = em.prepare(old)
  shares, log_prob = em.normalize(em.log_joint(prepared, x))
  expected = em.moments_of(moved, shares, weight, x)
  expected = expected._replace(log_prob=log_prob.sum())
  found = em.first_run(new.stats)
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=0.02)


def test_the_best_run_reflects_the_last_batch():
  """The mean of one component is that of the batch alone, if told to forget."""
  state = gmm.start(KEY, X[:200], num_components=1)
  mixture = gmm.best(gmm.update(state, X[200:] + 7, decay=0.0)).params
  expected = (X[200:] + 7).mean(axis=0)
  np.testing.assert_allclose(mixture.means[0], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_batches_find_what_all_points_show(covariance):
  x, _ = clusters(num_points=6000)
  state = start(x[:500], covariance=covariance)
  for _ in range(3):
    for begin in range(0, 6000, 500):
      state = gmm.update(state, x[begin : begin + 500])
  found = gmm.best(state).params
  whole = gmm.fit(
    KEY, x, num_components=3, covariance=covariance, init=found, tol=1e-5
  )
  gap = whole.log_likelihood - gmm.log_prob(found, x).mean()
  assert -1e-4 < gap < 0.03


def test_a_batch_that_is_not_finite_is_left_out_until_the_next():
  state = start()
  broken = gmm.update(state, np.full_like(X[:20], np.nan))
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.params, state.params)
  chex.assert_trees_all_equal(broken.stats, state.stats)
  again = gmm.update(broken, X[:20])
  assert again.stop_reason[0] == StopReason.RUNNING
  chex.assert_trees_all_equal(again, gmm.update(state, X[:20]))


def test_a_batch_of_padding_changes_no_likelihood():
  state = start()
  new = gmm.update(state, X[:20], np.zeros(20))
  assert new.stop_reason[0] == StopReason.RUNNING
  np.testing.assert_array_equal(new.objective, state.objective)
  chex.assert_tree_all_finite(gmm.best(new))


def test_a_batch_cannot_be_remembered_more_than_whole():
  with pytest.raises(InputError, match=r'decay is -3.0: .* from 0 to 1'):
    gmm.update(start(), X, decay=-3.0)


def test_further_points_must_fit_the_first():
  state = start()
  for function in (gmm.run, gmm.update):
    with pytest.raises(InputError, match=r'it must be \[N, 3\]'):
      function(state, X[:, :2])


def test_several_runs_take_batches_together():
  starts = X[:6].reshape(2, 3, 3)
  state = gmm.update(start(init=starts), X[:100])
  for run, means in enumerate(starts):
    alone = gmm.update(start(init=means), X[:100])
    chex.assert_trees_all_close(
      jax.tree.map(lambda a, run=run: a[run], state.params),
      em.first_run(alone.params),
      rtol=1e-5,
      atol=1e-6,
    )

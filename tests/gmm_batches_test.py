"""Mixtures of data that come in mini-batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.mixture
from mixtures import FAMILIES, KEY, clusters

from jaxclust import gmm
from jaxclust.algorithms import em
from jaxclust.algorithms.solver import StopReason
from jaxclust.errors import InputError

X, LATER = np.split(clusters(num_points=800, apart=2.0)[0], 2)


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
  state = start(covariance=covariance, init='random')
  new = gmm.update(state, LATER, decay=1.0)

  @jax.jit
  def moments(old, moved, frame, x):
    old, moved, x = em.first_run(old), em.first_run(moved), frame.apply(x)
    shares, log_prob = em.normalize(em.log_joint(em.prepare(old), x))
    expected = em.moments_of(moved, shares, jnp.ones(len(x)), x)
    return expected._replace(log_prob=log_prob.sum())

  x = np.concatenate([X, LATER])
  expected = moments(state.params.params, new.params.params, state.frame, x)
  found = jax.tree.map(lambda a: np.asarray(a)[0], new.stats)
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=0.02)


def test_the_best_run_reflects_the_last_batch():
  """The mean of one component is that of the batch alone, if told to forget."""
  state = gmm.start(KEY, X, num_components=1)
  mixture = gmm.best(gmm.update(state, LATER + 7, decay=0.0)).params
  expected = (LATER + 7).mean(axis=0)
  np.testing.assert_allclose(mixture.means[0], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('covariance', FAMILIES)
def test_batches_find_what_all_points_show(covariance):
  x, _ = clusters(num_points=6000)
  batches = np.split(x, 12)
  state = start(batches[0], covariance=covariance)
  for batch in 3 * batches:
    state = gmm.update(state, batch)
  found = gmm.best(state).params
  whole = sklearn.mixture.GaussianMixture(
    3, covariance_type=covariance, means_init=found.means, tol=1e-5
  ).fit(x)
  log_prob = [gmm.log_prob(found, batch) for batch in batches]
  assert -1e-4 < whole.score(x) - np.mean(log_prob) < 0.03


def test_a_batch_that_is_not_finite_is_left_out_until_the_next():
  state = start()
  broken = gmm.update(state, np.full_like(LATER, np.nan))
  assert broken.stop_reason[0] == StopReason.NONFINITE
  chex.assert_trees_all_equal(broken.params, state.params)
  chex.assert_trees_all_equal(broken.stats, state.stats)
  again = gmm.update(broken, LATER)
  assert again.stop_reason[0] == StopReason.RUNNING
  chex.assert_trees_all_equal(again, gmm.update(state, LATER))


def test_a_batch_of_padding_changes_no_likelihood():
  state = start()
  new = gmm.update(state, LATER, np.zeros(len(LATER)))
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
  state = gmm.update(start(init=starts), LATER)
  for run, means in enumerate(starts):
    alone = gmm.update(start(init=means), LATER)
    chex.assert_trees_all_close(
      *(
        jax.tree.map(lambda a, run=run: np.asarray(a)[run], params)
        for run, params in ((run, state.params), (0, alone.params))
      ),
      rtol=1e-5,
      atol=1e-6,
    )

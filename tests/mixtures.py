"""Points and mixtures that tests of several modules share."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxclust import gmm
from jaxclust.algorithms.em import GMMParams

KEY = jax.random.key(0)
FAMILIES = list(gmm.FAMILIES)


def clusters(num_points=400, num_features=3, num_clusters=3, seed=0, apart=4.0):
  """Points `[N, D]` of sheared Gaussians, and their labels `[N]`."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_clusters, size=num_points)
  shear = rng.normal(size=(num_clusters, num_features, num_features))
  means = apart * rng.normal(size=(num_clusters, num_features))
  noise = rng.normal(size=(num_points, num_features))
  x = np.einsum('nd,nde->ne', noise, shear[labels]) + means[labels]
  return x.astype(np.float32), labels


def params_of(covariance, num_components=3, num_features=2, seed=0):
  """A random mixture of a family."""
  rng = np.random.default_rng(seed)
  shape = gmm.FAMILIES[covariance].shape(num_components, num_features)
  scale = rng.uniform(0.5, 2, size=shape)
  if len(shape) == 3:
    scale = np.tril(scale)
  weights = rng.dirichlet(np.ones(num_components))
  means = rng.normal(size=(num_components, num_features))
  return GMMParams(
    *(jnp.asarray(a, jnp.float32) for a in (np.log(weights), means, scale))
  )


def fit_from_rows(x):
  """A mixture from given starts; tests that trace it share the program."""
  return gmm.fit(KEY, x, num_components=3, init=x[:3])


def params_of_runs(state):
  """The mixture of each run of a state, in the data's units."""
  runs, frame = state._replace(frame=()), state.frame
  for run in range(len(state.objective)):
    one = jax.tree.map(lambda a, run=run: a[run : run + 1], runs)
    yield gmm.best(one._replace(frame=frame)).params


def covariances(params):
  """`[K, D, D]` in float64, whatever the family."""
  num_components, num_features = params.means.shape
  scale = np.asarray(params.scale_tril, np.float64)
  if scale.ndim == 2:
    scale = np.broadcast_to(scale, (num_components, num_features))
    return np.stack([np.diag(s**2) for s in scale])
  matrices = scale @ scale.swapaxes(1, 2)
  return np.broadcast_to(matrices, (num_components, *matrices.shape[1:]))


def log_densities(params, x):
  """`log w_k + log N(x_n; k)` `[N, K]` by SciPy."""
  return np.stack(
    [
      weight + scipy.stats.multivariate_normal(mean, cov).logpdf(x)
      for weight, mean, cov in zip(
        np.asarray(params.log_weights, np.float64),
        np.asarray(params.means, np.float64),
        covariances(params),
        strict=True,
      )
    ],
    axis=1,
  )

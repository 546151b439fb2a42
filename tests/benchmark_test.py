"""The benchmark: what it measures, and that all contestants did the same."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from jaxclust import benchmark, kmeans
from jaxclust.algorithms.covariances import FAMILIES
from jaxclust.algorithms.em import GMMParams
from jaxclust.benchmark import MismatchError, peers
from jaxclust.benchmark import contest as contests
from jaxclust.benchmark.contest import OURS, Contest, Task, measure
from jaxclust.benchmark.scaling import make_points
from jaxclust.errors import InputError

OPTIONS = {
  'groups': ('kmeans', 'mixtures', 'autoencoder'),
  'rounds': 2,
  'patience': 60.0,
  'limit_size': 32,
  'kmeans': {
    'num_clusters': 4,
    'num_restarts': 2,
    'many_clusters': 6,
    'many_steps': 5,
  },
  'mixtures': {
    'num_components': 3,
    'covariances': tuple(FAMILIES),
    'dims': (4, 4, 4, 4),
    'em_steps': 3,
  },
  'autoencoder': {
    'features': (4, 2),
    'batch_size': 64,
    'learning_rate': 1e-2,
    'dtype': 'float32',
    'num_seeds': 2,
  },
  'scaling': {
    'points': ((300, 3), (400, 5)),
    'num_clusters': (2, 7),
    'num_steps': 4,
    'batches': ((500, 3, 2),),
    'batch_size': 50,
    'seedings': (('k-means++', 400, 3, 40), ('k-means||', 400, 3, 40)),
  },
  'latency': {'works': ('kmeans',)},
}
KEY = jax.random.key(0)
MODULES = {'scikit-learn': 'sklearn', 'torch': 'torch', 'Keras': 'keras'}


def images(num_images=300):
  """Images of 7x5x2, odd in size, around one of eight pictures."""
  rng = np.random.default_rng(0)
  pictures = rng.uniform(0.2, 0.8, (8, 7, 5, 2))
  noise = 0.1 * rng.uniform(-1, 1, (num_images, 7, 5, 2))
  x = pictures[rng.integers(8, size=num_images)] + noise
  return jnp.asarray(x, jnp.float32)


def measured(monkeypatch, options):
  """The records of all rows that are planned."""
  monkeypatch.setattr(contests, '_PAUSE', 0)
  x, limits = images(), benchmark.measure_limits(32)
  assert min(limits.values()) > 0
  return [
    measure(row(jax.random.key(0), x), 2, 60.0, limits)
    for row in benchmark.plan(x.shape, **OPTIONS | options)
  ]


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_every_installed_peer_does_the_same(monkeypatch):
  rows = measured(monkeypatch, {})
  assert len(rows) == 8
  seeding, *_, mixture, epoch = rows
  for row, names in (
    (seeding, ['scikit-learn']),
    (mixture, ['scikit-learn', 'torch']),
    (epoch, ['torch', 'Keras']),
  ):
    here = [n for n in names if importlib.util.find_spec(MODULES[n])]
    assert list(row['ratio']) == here
  for row in rows[1:]:
    ours = row['objective'][OURS]
    for objective in row['objective'].values():
      assert objective == pytest.approx(ours, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_points_of_any_size_are_clustered_by_all(monkeypatch):
  rows = measured(monkeypatch, {'groups': ('scaling',)})
  sizes = [(300, 3, 2), (300, 3, 7), (400, 5, 2), (400, 5, 7)]
  assert [tuple(row['size'].values()) for row in rows[3:]] == sizes
  assert [row['name'] for row in rows[:3]] == [
    'k-means++, 400 x 3, k = 40, one start',
    'k-means||, 400 x 3, k = 40, one start',
    'k-means, 500 x 3, k = 2, batches of 50',
  ]
  assert all('scikit-learn' in row['ratio'] for row in rows)
  x, starts = make_points(0, 5000, 3, 2)
  assert x.shape == (5000, 3)
  assert all((x == start).all(axis=1).sum() == 1 for start in starts)
  inertia = kmeans.fit(KEY, x, num_clusters=2).inertia
  assert float(inertia) == pytest.approx(5000 * 3, rel=0.3)


@pytest.mark.slow
@pytest.mark.usefixtures('light_compiler')
def test_each_layer_is_a_row_of_its_own(monkeypatch):
  network = OPTIONS['autoencoder'] | {'features': (4,)}
  options = {'groups': ('layers',), 'autoencoder': network}
  first, *others, last = measured(monkeypatch, options)
  assert first['name'] == 'encoder 0, 7 x 5 x 2 to 4 x 3 x 4, forward'
  assert len(others) == 6
  assert last['name'] == (
    'decoder 1, 4 x 3 x 4 to 7 x 5 x 2, gradient of its input'
  )
  names = {row['name'] for row in (first, *others, last)}
  assert len(names) == 8
  assert all(row['ratio'] == {} and row['limit'] > 0 for row in others)


@pytest.mark.slow
def test_a_first_call_does_the_same_in_a_new_process():
  options = OPTIONS | {'groups': ('latency',)}
  (row,) = benchmark.plan((300, 7, 5, 2), **options)
  found = measure(row(None, None), 1, 0, LIMITS)
  assert list(found['ratio']) == ['scikit-learn', 'jaxclust, kept programs']
  assert found['ratio']['jaxclust, kept programs']['median'] < 0.8
  assert all(0 < s < 60 for own in found['seconds'].values() for s in own)
  assert found['objective']['scikit-learn'] == pytest.approx(78.85, abs=0.01)


@pytest.mark.filterwarnings('ignore:Best performing initialization')
def test_scikit_learn_computes_in_float32(monkeypatch):
  fitted = []
  monkeypatch.setattr(
    GaussianMixture, 'score', lambda self, x: fitted.append(self) or 0.0
  )
  x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  start = GMMParams(np.log([0.5, 0.5]), x[:2], np.ones((2, 1)))
  start = jax.tree.map(np.float32, start)
  tasks = peers.tasks('em', x, start, 1e-3, 2)
  tasks['scikit-learn'].run()()
  assert fitted[0].means_.dtype == fitted[0].covariances_.dtype == np.float32


LIMITS = {'operations_per_second': 2.0, 'bytes_per_second': 1.0}


def contest(theirs):
  return Contest(
    name='a row',
    tasks={OURS: Task(lambda: lambda: 2.0), 'peer': theirs},
    tolerance=1e-2,
    operations=1.0,
    numbers=1.0,
  )


def test_seconds_are_those_of_the_parts_of_a_task(monkeypatch):
  clock = {'now': 0.0}

  def peer():
    clock['now'] += 12
    return lambda: 2.0

  def ours():
    clock['now'] += 2
    return lambda: 2.0

  monkeypatch.setattr(contests.time, 'perf_counter', lambda: clock['now'])
  monkeypatch.setattr(contests.time, 'sleep', lambda seconds: None)
  row = contest(Task(peer, 4))
  row = row._replace(tasks=row.tasks | {OURS: Task(ours, 2)})
  found = measure(row, 3, 1e3, LIMITS)
  assert found['seconds'] == {OURS: [1.0] * 3, 'peer': [3.0] * 3}
  assert found['ratio']['peer'] == {'median': 3, 'least': 3, 'largest': 3}
  assert found['limit'] == 4  # bytes of a number, at one a second
  assert found['share_of_limit'] == 4
  # Rounds take 14 s; none begins after 20.
  found = measure(row, 5, 20, LIMITS)
  assert found['seconds'] == {OURS: [1.0] * 2, 'peer': [3.0] * 2}


@pytest.mark.parametrize('other', [2.1, np.nan])
def test_another_objective_ends_the_measurement(other):
  with pytest.raises(MismatchError, match='a row: peer ended at'):
    measure(contest(Task(lambda: lambda: other)), 1, 0, LIMITS)


@pytest.mark.parametrize(
  ('group', 'options', 'message'),
  [
    ('', {'rounds': 0}, 'rounds is 0'),
    ('', {'groups': ('kmeans', 'forests')}, 'groups are'),
    ('kmeans', {'many_clusters': 99}, 'many_clusters is 99, but .* 50 images'),
    ('mixtures', {'covariances': ('full',)}, 'one for each of the 4 dims'),
    ('mixtures', {'covariances': ('full', 'tied', 'diag', 'a')}, 'covariances'),
    ('mixtures', {'dims': (4, 4, 4, 9)}, r'dims\[3\] is 9, but .* 6 numbers'),
    ('mixtures', {'dims': (4, 4, 4, 0)}, r'dims\[3\] is 0'),
    ('', {'patience': -1}, 'patience is -1'),
    ('scaling', {'points': ((5, 2),)}, 'num_clusters is 7, but x has only 5'),
    ('scaling', {'points': ((9, 0),)}, 'each size of points is 0'),
    ('scaling', {'batch_size': 501}, 'batch_size is 501, but x has only 500'),
    (
      'scaling',
      {'seedings': (('a', 9, 2, 2),)},
      "each init of seedings is 'a'",
    ),
    ('autoencoder', {'features': (0,)}, 'each of features is 0'),
    ('autoencoder', {'batch_size': 0}, 'batch_size is 0'),
    ('autoencoder', {'num_seeds': 0}, 'num_seeds is 0'),
    ('autoencoder', {'dtype': 'int8'}, "dtype is 'int8'"),
  ],
)
def test_options_that_cannot_be_used_are_named(group, options, message):
  changed = {group: OPTIONS[group] | options} if group else options
  with pytest.raises(InputError, match=message):
    benchmark.plan((50, 3, 2, 1), **(OPTIONS | changed))

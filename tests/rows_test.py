"""Passes over rows: the same wherever the rows lie."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from point_sets import sharded, two_devices

from jaxclust import rows as rows_module
from jaxclust.frames import Frame, dot
from jaxclust.inputs import on_any_mesh, place
from jaxclust.prefetch import ahead
from jaxclust.programs import compiled
from jaxclust.rows import (
  Rows,
  block_rows,
  cumulate,
  map_rows,
  reduce_rows,
  scan_rows,
  take_rows,
  top_rows,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
WEIGHT = RNG.integers(0, 3, 50).astype(np.float32)
COLUMN = np.arange(50, dtype=np.float32)
FACTOR = np.float32(3)
FRAME = Frame(np.full(4, 0.5, np.float32), np.float32(2))

# What a pass sees: rows of weight zero are zero.
INSIDE = np.where(WEIGHT[:, None] > 0, (X - 0.5) / 2, 0)


# Place -> rows that lie there.
PLACES = {
  'device': lambda: place(X, WEIGHT),
  'not padded': lambda: Rows(jnp.asarray(X), jnp.asarray(WEIGHT)),
  'blocks': lambda: place(X, WEIGHT, block_size=7),
  'single rows': lambda: place(X, WEIGHT, block_size=1),
  'mesh': lambda: place(sharded(X), WEIGHT),
  'mesh in blocks': lambda: place(sharded(X), WEIGHT, block_size=7),
  'replicated': lambda: place(sharded(X, None, None, None), WEIGHT),
  'by features': lambda: place(sharded(X, None, None, 'rows'), WEIGHT),
  'stream': lambda: Rows(X, WEIGHT),
  'stream in blocks': lambda: Rows(X, WEIGHT, block_size=7),
}


@pytest.fixture(params=PLACES)
def rows(request, monkeypatch):
  monkeypatch.setattr(rows_module, '_STREAM_BYTES', 16 * 4 * X.shape[1])
  return in_frame(PLACES[request.param]())


def in_frame(rows):
  return dataclasses.replace(rows, frame=FRAME)


def sums(factor, x, weight, column):
  return {'sum': factor * dot(weight, x), 'count': dot(weight, column)}


def doubled(factor, x, column):
  return factor * x, column + x[:, 0]


def scores(factor, weight, column):
  """Two selections: the first and the last rows of positive weight."""
  score = factor * jnp.stack([-column, column])
  return jnp.where(weight[None] > 0, score, -jnp.inf)


def columns_of(rows):
  """A column beside the rows, padded as they are."""
  column = np.pad(COLUMN, (0, rows.shape[0] - 50))
  return column if rows.is_streamed else jnp.asarray(column)


def both(factor, x, weight, column):
  return sums(factor, x, weight, column), doubled(factor, x, column)


@compiled
def all_passes(rows, column):
  return (
    reduce_rows(sums, FACTOR, rows, column),
    map_rows(doubled, FACTOR, rows, column),
    scan_rows(both, FACTOR, rows, column),
    top_rows(scores, FACTOR, rows, column, count=5),
  )


def check_passes(rows, column):
  total, mapped, scanned, (best, best_rows) = all_passes(rows, column)
  for found in (total, scanned[0]):
    np.testing.assert_allclose(found['sum'], 3 * WEIGHT @ INSIDE, rtol=1e-5)
    np.testing.assert_allclose(found['count'], WEIGHT @ COLUMN)
  for found in (mapped, scanned[1]):
    tripled, plus = rows.trim(found)
    np.testing.assert_allclose(tripled, 3 * INSIDE, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plus, COLUMN + INSIDE[:, 0], rtol=1e-5)
  there = np.flatnonzero(WEIGHT)
  place = np.stack([there[:5], there[::-1][:5]])
  np.testing.assert_array_equal(np.abs(best), 3 * place)
  np.testing.assert_allclose(best_rows, INSIDE[place], rtol=1e-5, atol=1e-6)


def test_passes_agree_wherever_the_rows_lie(rows):
  check_passes(rows, columns_of(rows))


def test_sums_of_a_column_go_on_from_device_to_device(rows):
  for dtype in (np.float32, np.int32):
    found = cumulate(rows, rows.weight.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(rows.trim(found), WEIGHT.cumsum())


def test_rows_are_taken_wherever_they_lie(rows):
  index = jnp.array([3, 49, 0, 3, 26])
  np.testing.assert_array_equal(take_rows(rows, index), X[np.asarray(index)])


@pytest.mark.parametrize('inside', [False, True])
def test_passes_agree_on_explicit_axes(inside):
  mesh = two_devices(AxisType.Explicit)
  x = sharded(X, mesh)
  checked = on_any_mesh(
    lambda x: check_passes(in_frame(place(x, WEIGHT)), jnp.asarray(COLUMN))
  )
  if inside:
    with jax.set_mesh(mesh):
      checked(x)
  else:
    checked(x)


def test_what_a_pass_makes_of_rows_lies_where_they_lie():
  rows = in_frame(place(sharded(X), WEIGHT))
  mapped, _ = map_rows(doubled, FACTOR, rows, jnp.asarray(COLUMN))
  assert mapped.sharding.is_equivalent_to(rows.x.sharding, 2)
  rows = in_frame(Rows(X, WEIGHT))
  assert isinstance(map_rows(doubled, FACTOR, rows, COLUMN)[0], np.ndarray)


def test_a_selection_of_more_rows_than_there_are_ends_in_minus_infinity():
  rows = Rows(jnp.asarray(X[:3]), jnp.ones(3))
  best, _ = top_rows(
    lambda _, weight, column: column[None], (), rows, jnp.arange(3.0), count=5
  )
  np.testing.assert_array_equal(best, [[2, 1, 0, -np.inf, -np.inf]])


def test_blocks_keep_to_their_budget():
  assert block_rows(10, 784) == 10
  on_cpu = jax.default_backend() == 'cpu'
  budget = 2**19 if on_cpu else 2**25
  assert 0.9 * budget < block_rows(10**6, 784) * 784 <= budget
  assert block_rows(10**6, 10**9) == 256
  assert block_rows(10**6, 784, 5) == 5


def test_a_few_rows_enter_their_frame_once():
  rows = in_frame(place(X, WEIGHT, block_size=7))
  check_passes(rows.enter_frame(), columns_of(rows))
  assert rows.enter_frame().frame is None
  assert in_frame(Rows(X, WEIGHT)).enter_frame().frame is FRAME


def test_the_next_blocks_are_loaded_while_one_is_worked_on():
  started = [threading.Event() for _ in range(6)]

  def load(i):
    started[i].set()
    return 10 * i

  for i, loaded in enumerate(ahead(range(6), load)):
    assert loaded == 10 * i
    for event in started[i + 1 : i + 3]:
      assert event.wait(timeout=30)  # before another one is asked for
    assert not any(event.is_set() for event in started[i + 4 :])


def test_an_error_of_loading_reaches_the_caller():
  def load(i):
    if i == 2:
      raise OSError('the disk is gone')
    return i

  found = []
  with pytest.raises(OSError, match='the disk is gone'):
    found.extend(ahead(range(5), load))
  assert found == [0, 1]

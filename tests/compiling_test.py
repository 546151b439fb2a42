"""Programs that are compiled while others run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclust import gmm, kmeans, programs
from jaxclust.programs import compiled, compiling

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
KEY = jax.random.key(0)


@functools.partial(compiled, static=(0,))
def power(exponent, x):
  return x**exponent


def test_what_was_compiled_ahead_is_ready(count_programs):
  with compiling((power, 3, jax.ShapeDtypeStruct((2, 3), jnp.float32))):
    pass
  assert not count_programs(power, 3, np.ones((2, 3), np.float32))
  assert count_programs(power, 3, np.ones((3, 2), np.float32))


def test_a_call_is_compiled_ahead_once(monkeypatch):
  started = []
  monkeypatch.setattr(programs, '_compile', lambda *call: started.append(call))
  for size in (5, 5, 6):
    with compiling((power, 2, np.ones(size, np.float32))):
      pass
  assert [call[-1].size for call in started] == [5, 6]


def test_a_call_that_cannot_be_compiled_raises_when_it_is_made():
  call = power, 2, np.ones(7, np.float32), 'one argument too many'
  with pytest.raises(TypeError), compiling(call[:-1]):
    power(*call[1:])


def test_nothing_is_compiled_ahead_of_a_traced_call(monkeypatch):
  monkeypatch.setattr(programs, '_compile', None)  # a thread would fail

  @jax.jit
  def traced(x):
    with compiling((power, 2, x)):
      return power(2, x)

  np.testing.assert_array_equal(traced(np.full(3, 2.0)), [4, 4, 4])


def test_wide_numbers_of_one_thread_alone_are_left_to_it(count_programs):
  with jax.enable_x64(True):
    x = np.ones((9, 2))
    with compiling((power, 2, x)):
      pass
    assert count_programs(power, 2, x)
    assert power(2, x).dtype == np.float64


@pytest.mark.parametrize(('fit', 'ahead'), [(kmeans.fit, 1), (gmm.fit, 3)])
def test_a_fit_waits_for_what_it_has_compiled_ahead(
  fit, ahead, monkeypatch, count_programs
):
  size = 'num_clusters' if fit is kmeans.fit else 'num_components'
  fit = functools.partial(fit, **{size: 2, 'num_restarts': 2})
  jax.clear_caches()
  monkeypatch.setattr(programs, '_AHEAD', set())
  here = count_programs(fit, KEY, X)  # in this thread
  jax.clear_caches()
  monkeypatch.setattr(programs, '_is_new', lambda *call: False)
  assert count_programs(fit, KEY, X) == here + ahead

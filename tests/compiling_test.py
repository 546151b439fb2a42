"""Programs that are compiled while others run."""

import functools
import time

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


@pytest.fixture
def started(monkeypatch):
  """Arguments of the calls that threads compile, each in a while."""
  calls = []

  def compile_slowly(wide, fn, *args):
    del wide, fn
    time.sleep(0.05)
    calls.append(args)

  monkeypatch.setattr(programs, '_compile', compile_slowly)
  return calls


def test_a_call_is_compiled_ahead_once_and_waited_for(started):
  for size, count in ((5, 1), (5, 1), (6, 2)):
    with compiling((power, 2, np.ones(size, np.float32))):
      pass
    assert len(started) == count


def test_a_call_that_cannot_be_compiled_raises_when_it_is_made():
  call = power, 2, np.ones(7, np.float32), 'one argument too many'
  with pytest.raises(TypeError), compiling(call[:-1]):
    power(*call[1:])


def test_nothing_is_compiled_ahead_of_a_traced_call(started):
  @jax.jit
  def traced(x):
    with compiling((power, 2, x)):
      return power(2, x)

  np.testing.assert_array_equal(traced(np.full(3, 2.0)), [4, 4, 4])
  assert not started


@pytest.mark.parametrize('wide', [True, False])
def test_wide_numbers_of_one_thread_alone_are_left_to_it(wide):
  lowered = []

  def call(x):
    return x

  call.num_static, call.lower = 0, lowered.append
  with jax.enable_x64(wide), compiling((call, np.ones(4))):
    pass
  assert len(lowered) == (not wide)


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

"""Functions that XLA compiles when they are called, or ahead of that.

XLA compiles one program in one thread; tracing holds Python's lock, and XLA's
work does not.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import jax

# Calls that were compiled ahead once, or are being so.
_AHEAD = set()


def compiled(fn: Callable, static: tuple[int, ...] = ()) -> Callable:
  """Compiles a function whose passes are all over the Rows among its arguments;
  with streamed rows it runs block by block."""
  jitted = jax.jit(fn, static_argnums=static)

  @functools.wraps(fn)
  def call(*args):
    return (fn if _is_streamed(args) else jitted)(*args)

  call.lower, call.num_static = jitted.lower, len(static)
  return call


def _is_streamed(args):
  return any(getattr(a, 'is_streamed', False) for a in args)


@contextlib.contextmanager
def compiling(*calls: tuple) -> Iterator[None]:
  """Compiles calls in threads while the body works, which they are to follow.

  A call is a function of `compiled`, whose static arguments come first, and
  arguments like those to come: arrays, or their shapes. Nothing is gained, and
  nothing lost, where JAX traces the body, or is set up for its thread alone.
  """
  threads = [
    threading.Thread(target=_compile, args=(jax.config.jax_enable_x64, *call))
    for call in calls
    if _is_new(*call)
  ]
  for thread in threads:
    thread.start()
  try:
    yield
  finally:
    for thread in threads:
      thread.join()


def _is_new(fn, *args):
  """Whether arguments like these are compiled ahead for the first time."""
  static, rest = args[: fn.num_static], args[fn.num_static :]
  leaves, structure = jax.tree.flatten(rest)
  if _is_streamed(rest) or any(isinstance(a, jax.core.Tracer) for a in leaves):
    return False
  shapes = tuple(str(jax.typeof(a)) for a in leaves)
  call = fn, static, structure, shapes
  if call in _AHEAD:
    return False
  _AHEAD.add(call)
  return True


def _compile(wide, fn, *args):
  if jax.config.jax_enable_x64 == wide:
    with contextlib.suppress(Exception):  # the call itself will raise it
      fn.lower(*args).compile()

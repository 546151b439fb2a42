"""Checks of options and arrays; each raises an InputError.

Traced values pass: only shapes and dtypes of them are known.

Axes: N points, D features.
"""

import contextlib
import contextvars
import inspect
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxclust.errors import InputError, one_line

# Rows of x copied at a time to find a value that is not finite.
_ROWS_OF_A_LOOK = 2**16

# Rows of x, evenly spaced, that show how many digits it needs.
_ROWS_FOR_DIGITS = 2**12

# Maximum rounding of x by a cast, as a share of the spread of x.
_ROUNDING_SHARE = 1 / 8


def is_traced(*arrays: Any) -> bool:
  """Whether JAX traces any of the arrays, so that values are unknown."""
  return any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(arrays))


# How a thread words a warning: message -> message, category.
_wording = contextvars.ContextVar(
  'wording', default=lambda message: (message, UserWarning)
)


@contextlib.contextmanager
def wording(words: Callable) -> Iterator[None]:
  """Lets `words(message) -> message, category` word the warnings of this thread
  within the context; `warnings.catch_warnings` would change all threads."""
  token = _wording.set(words)
  try:
    yield
  finally:
    _wording.reset(token)


def warn(message: str) -> None:
  """Warns at the line that calls the package."""
  message, category = _wording.get()(message)
  frame, level = inspect.currentframe(), 1
  while frame.f_globals.get('__name__', '').startswith('jaxclust.'):
    frame, level = frame.f_back, level + 1
  warnings.warn(message, category, stacklevel=level)


def fetch(array: Any) -> np.ndarray:
  """An array on the host; where processes share its devices, each calls this
  and gets the whole."""
  if isinstance(array, jax.Array) and not (
    array.is_fully_addressable or array.is_fully_replicated
  ):
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def check_count(
  name: str, value: Any, low: int = 1, high: float = np.inf
) -> int:
  """Returns a whole number within its bounds."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or not low <= value <= high:
    bounds = f'of at least {low}'
    if high < np.inf:
      bounds = f'from {low} to {high}'
    raise InputError(f'{name} is {value!r}: it must be a whole number {bounds}')
  return int(value)


def check_number(
  name: str, value: Any, low: float = 0.0, high: float = np.inf
) -> None:
  """Checks that a number is finite and within its bounds."""
  if is_traced(value):
    return
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if getattr(value, 'ndim', None) == 0:
    number = True
  if not number or not np.isfinite(float(value)) or not low <= value <= high:
    bounds = f'of at least {low:g}'
    if high < np.inf:
      bounds = f'from {low:g} to {high:g}'
    raise InputError(
      f'{name} is {value!r}: it must be a finite number {bounds}'
    )


def as_number(value: Any) -> Any:
  """A number as a float, for which 0 and 0.0 are one program; one that JAX
  traces stays."""
  return value if is_traced(value) else float(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
  """Checks that a value is one of the named choices."""
  if not isinstance(value, str) or value not in choices:
    raise InputError(
      f'{name} is {value!r}: it must be one of {", ".join(choices)}'
    )


def check_groups(name: str, num_groups: Any, num_points: int) -> int:
  """Returns a number of clusters or components, at most one for each row."""
  count = check_count(name, num_groups)
  if count > num_points:
    raise InputError(
      f'{name} is {count}, but x has only {num_points} rows: ask for at most '
      f'as many {name.removeprefix("num_")} as rows'
    )
  return count


def check_centers(
  name: str, centers: Any, num_clusters: int | None, num_features: int
) -> None:
  """Checks centers `[K, D]` or `[R, K, D]`; where K is None, any `[K, D]`."""
  centers = as_real(name, centers)
  shape = tuple(np.shape(centers))
  num_rows, end = num_clusters, 'end in'
  if num_clusters is None and len(shape) == 2:
    num_rows, end = shape[0], 'be'
  if 0 in shape or len(shape) > 3 or shape[-2:] != (num_rows, num_features):
    raise InputError(
      f'{name} has shape {shape}: it must {end} [{num_clusters or "K"}, '
      f'{num_features}], as x has {num_features} features'
    )
  if not is_traced(centers) and not np.isfinite(np.asarray(centers)).all():
    raise InputError(f'{name} has values that are NaN or infinite: give others')


def check_key(key: Any) -> None:
  """Checks that draws have a random key of JAX's, or its raw bits."""
  dtype = getattr(key, 'dtype', np.dtype(object))
  is_typed = jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0
  if not is_typed and not (dtype == np.uint32 and key.ndim == 1):
    raise InputError(
      f'key is {key!r}: it must be one random key, such as jax.random.key(0)'
    )


def check_features(x: Any, num_features: int) -> None:
  """Checks that points have the features of those fitted before."""
  shape = np.shape(x)
  if len(shape) != 2 or shape[1] != num_features:
    raise InputError(
      f'x has shape {shape}: it must be [N, {num_features}], with the features '
      'of the first points'
    )


def as_real(name: str, array: Any) -> Any:
  """Returns an array of real numbers: JAX's as it is, all else as NumPy's."""
  if not isinstance(array, jax.Array | np.ndarray):
    try:
      array = np.asarray(array)
    except ValueError as error:
      raise InputError(f'{name} is no array: {one_line(error)}') from error
  if array.dtype == object:
    try:
      array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
      raise InputError(
        f'{name} has objects that are no numbers ({one_line(error)})'
      ) from error
  kinds = (jnp.floating, jnp.integer, jnp.bool_)
  if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
    raise InputError(
      f'{name} is of dtype {array.dtype}: it must be real numbers'
    )
  return array


def check_shape(x: Any) -> None:
  """Checks that x is `[N, D]`."""
  if x.ndim != 2 or 0 in x.shape:
    raise InputError(
      f'x has shape {tuple(x.shape)}: it must be [N, D], both at least 1'
    )


def check_digits(x: np.ndarray, dtype: Any) -> None:
  """Checks that rows of x `[N, D]` can still be told apart in another dtype."""
  if x.dtype == dtype or x.dtype.itemsize < 4:
    return
  some = x[:: -(-len(x) // _ROWS_FOR_DIGITS)].astype(np.float64)
  with np.errstate(over='ignore', invalid='ignore'):
    rounding = some - some.astype(dtype)
    rounding = np.abs(rounding - rounding.mean(axis=0)).max()
    spread = np.sqrt(np.square(some - some.mean(axis=0)).mean())
    noise = 8 * np.finfo(some.dtype).eps * np.abs(some).max()
  if spread > noise and rounding > _ROUNDING_SHARE * spread:
    raise InputError(
      f'x is {x.dtype} and needs more digits than {np.dtype(dtype).name} has, '
      f'which rounds it by up to {rounding:.3g} where it spreads by '
      f'{spread:.3g}: subtract its mean first, or set jax_enable_x64'
    )


def check_largest(x: Any, largest: float, dtype: Any) -> None:
  """Checks the largest magnitude in x `[N, D]`, not finite if any value is not;
  x itself is read only to name the first of those."""
  if not np.isfinite(largest):
    total, first = 0, None
    for start in range(0, len(x), _ROWS_OF_A_LOOK):
      block = fetch(x[start : start + _ROWS_OF_A_LOOK]).astype(np.float32)
      bad = np.argwhere(~np.isfinite(block))
      total += len(bad)
      if first is None and len(bad):
        row, column = bad[0]
        first = f'({block[row, column]}) at row {start + row}, column {column}'
    raise InputError(
      f'x has {total} values that are NaN or infinite in float32, the first '
      f'{first}: remove those rows, fill them in, or rescale x'
    )
  size = x.shape[0] * x.shape[1]
  bound = float(np.sqrt(float(jnp.finfo(dtype).max) / (4 * size)))
  if largest > bound:
    raise InputError(
      f'x reaches {largest:.3g}: beyond {bound:.3g} sums of squares overflow '
      f'{jnp.dtype(dtype).name}; divide x by a constant'
    )


def check_weights(
  weight: Any, num_points: int, dtype: Any, may_be_zero: bool = False
) -> Any:
  """Returns weights `[N]`, which must be finite, at least 0, and not all 0.

  With `may_be_zero`, all of them may be 0.
  """
  values = as_real('sample_weight', weight).astype(dtype)
  if not is_traced(weight):
    values = fetch(values)
  if values.shape != (num_points,):
    raise InputError(
      f'sample_weight has shape {values.shape}: x has {num_points} rows, '
      'each needs one weight'
    )
  if is_traced(values):
    return values
  bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
  if bad.size:
    raise InputError(
      f'sample_weight[{bad[0]}] is {values[bad[0]]}, the first of {bad.size} '
      'that are: weights must be finite and at least 0'
    )
  total = values.sum(dtype=np.float64)
  if not total > 0 and not may_be_zero:
    raise InputError(
      'sample_weight sums to 0: at least one weight must be above zero'
    )
  bound = float(np.sqrt(float(np.finfo(values.dtype).max)))
  if not total <= bound:
    raise InputError(
      f'sample_weight sums to {total:.3g}: beyond {bound:.3g} sums overflow; '
      'divide the weights by a constant'
    )
  return values

"""Work done ahead of its use, in threads."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Number of items that are worked on ahead.
_AHEAD = 2


def ahead(items: Iterable[Any], fn: Callable) -> Iterator[Any]:
  """Yields `fn` of each item in order, computed ahead in threads.

  >>> list(ahead([1, 2, 3], lambda item: 10 * item))
  [10, 20, 30]
  """
  with concurrent.futures.ThreadPoolExecutor(_AHEAD) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(fn, item))
      if len(waiting) > _AHEAD:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()

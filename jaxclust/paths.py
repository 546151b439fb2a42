"""Paths as users write them."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from jaxclust.errors import InputError

# Characters with which a path means itself to every library.
_PLAIN = re.compile(r'[\w./-]*', re.ASCII)


def as_path(text: str | os.PathLike) -> pathlib.Path:
  """An absolute path; a leading `~` is the user's home.

  Raises:
    InputError: if there is no home.
  """
  try:
    return pathlib.Path(text).expanduser().absolute()
  except RuntimeError as error:
    raise InputError(
      f'{text} names a home that does not exist: give a path without ~'
    ) from error


@contextlib.contextmanager
def plain(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to the same place in the same folder, without characters that mean
  something else to some libraries, such as brackets or spaces."""
  if _PLAIN.fullmatch(str(path)):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    link = pathlib.Path(folder, 'link')
    link.symlink_to(path.parent)
    yield link / path.name

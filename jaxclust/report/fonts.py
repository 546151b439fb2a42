"""Names that Matplotlib can show, in fonts that have their letters."""

import functools
from collections.abc import Iterator, Sequence

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font


def readable(names: Sequence[str]) -> list[str]:
  """Names as Matplotlib shows them letter by letter, in a legend too.

  Letters that the font lacks are taken from other fonts of this machine, which
  `font.family` names from here on; a letter that none has is written as its
  code. Call it before the axes are made.
  """
  names = [name.encode(errors='replace').decode() for name in names]
  families = list(matplotlib.rcParams['font.family'])
  missing = set(''.join(names)) - _letters(
    font_manager.findfont(font_manager.FontProperties(family=families))
  )
  for family, letters in _others() if missing else ():
    if missing & letters:
      families.append(family)
      missing -= letters
    if not missing:
      break
  matplotlib.rcParams['font.family'] = families
  codes = {ord(c): c.encode('unicode_escape').decode() for c in missing}
  return [_plain(name.translate(codes)) for name in names]


def _plain(name):
  """A name that is no formula, and that a legend does not leave out."""
  name = name.replace('$', r'\$')
  return f' {name}' if name.startswith('_') else name


def _others() -> Iterator[tuple[str, frozenset[str]]]:
  """The fonts of this machine, and their letters; not Matplotlib's own Last
  Resort, which has one sign for all letters of a script."""
  for font in font_manager.fontManager.ttflist:
    if not font.name.startswith('Last Resort'):
      yield font.name, _letters(font.fname)


@functools.cache
def _letters(path):
  """The letters of a font; none if it cannot be drawn."""
  try:
    return frozenset(map(chr, FT2Font(path).get_charmap()))
  except (OSError, RuntimeError):
    return frozenset()

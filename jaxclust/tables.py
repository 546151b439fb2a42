"""The table of a run: which image is in which cluster.

Axes: N images, K clusters.
"""

import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxclust import workdir
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.errors import InputError, one_line
from jaxclust.model import Model
from jaxclust.paths import as_path

# The table that programs read.
PARQUET = 'clusters.parquet'

# First characters of a text that a spreadsheet takes for a formula.
_FORMULA = ('=', '+', '-', '@', '\t', '\r')


def write(
  path: pathlib.Path,
  dataset: Dataset,
  own: Model,
  judged: dict[str, Assignment],
  places: dict[str, dict[str, np.ndarray]],
  names: Sequence[str] = (),
) -> None:
  """Writes `clusters.csv` and `clusters.parquet` into a run directory.

  Both hold a row for each image of all splits: `file` (or `split/number`),
  `split`, `cluster` and its `name`, the next best cluster `second`,
  `confidence` from 0 to 1, `outlier`, a percentile among the images of the run,
  `distance` from the center, `class`, and the place `x`, `y` on the last map.

  Args:
    path: of the run directory.
    dataset: the images.
    own: the model that has judged them.
    judged: what it has found in each split.
    places: as `maps.locate` returns them.
    names: of the K clusters; their numbers if empty.
  """
  import pyarrow
  from pyarrow import parquet

  found = Assignment(*map(np.concatenate, zip(*judged.values(), strict=True)))
  sizes = {split: len(each.labels) for split, each in judged.items()}
  files = dataset.files or [
    f'{split}/{row}' for split, size in sizes.items() for row in range(size)
  ]
  names = np.array(names or range(len(own.centers)), str)
  x = y = np.full(len(found.labels), np.nan)
  if places:
    last = next(reversed(places.values()))
    x, y = np.concatenate([last[split] for split in judged]).T
  columns = {
    'file': texts(files),
    'split': np.repeat(list(sizes), list(sizes.values())),
    'cluster': found.labels,
    'name': texts(names[found.labels]),
    'second': found.second,
    'confidence': found.confidence,
    'outlier': own.percentile(found.outlier_score),
    'distance': found.distance,
    'class': list(_classes(dataset, judged)),
    'x': x.astype(np.float32),
    'y': y.astype(np.float32),
  }
  safe = {
    name: [_for_spreadsheets(text) for text in columns[name]]
    for name in ('file', 'name', 'class')
  }
  safe['class'] = pyarrow.array(safe['class'], pyarrow.string())
  write_csv(path, 'clusters.csv', columns | safe)
  content = io.BytesIO()
  columns['class'] = pyarrow.array(columns['class'], pyarrow.string())
  parquet.write_table(pyarrow.table(columns), content)
  workdir.write(path, PARQUET, content.getvalue())


def write_csv(path: pathlib.Path, name: str, columns: dict[str, Any]) -> None:
  """Writes columns as `path/name`."""
  import pyarrow
  from pyarrow import csv

  content = io.BytesIO()
  csv.write_csv(pyarrow.table(columns), content)
  workdir.write(path, name, content.getvalue())


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The columns `[N]` of the table of a run."""
  from pyarrow import parquet

  table = parquet.read_table(path / PARQUET)
  return {name: table[name].to_numpy() for name in table.column_names}


def _classes(dataset, judged):
  """The class of each image as text; None where it is not known."""
  given = dataset.label_names
  for values, found in zip(
    (dataset.labels, dataset.test_labels), judged.values(), strict=False
  ):
    if values is None:
      yield from (None for _ in found.labels)
    else:
      known = (
        v if not given else given[int(v)] if v >= 0 else None for v in values
      )
      yield from (v if v is None else texts([v])[0] for v in known)


def texts(names: Iterable[Any]) -> list[str]:
  r"""Names as UTF-8.

  >>> texts(['a.png', -1, os.fsdecode(b'caf\xe9.png')])
  ['a.png', '-1', 'caf\\xe9.png']
  """
  return [os.fsencode(str(n)).decode(errors='backslashreplace') for n in names]


def _for_spreadsheets(text):
  """A text that no spreadsheet takes for a formula: `./` changes no path."""
  if text is None or not text.startswith(_FORMULA):
    return text
  try:
    float(text)
  except ValueError:
    return f'./{text}'
  return text


def read_names(file: str | os.PathLike, num_clusters: int) -> list[str]:
  """Names of K clusters from a JSON file of an object, as {"0": "shoes"};
  clusters that it leaves out are called by their numbers.

  Raises:
    InputError: if the file is no such object, or names other clusters.
  """
  names = {str(k): str(k) for k in range(num_clusters)}
  try:
    found = workdir.parse_object(as_path(file).read_bytes())
    ''.join(map(str, found.values())).encode()  # to text of UTF-8
  except (OSError, ValueError) as error:
    raise InputError(
      f'{file} does not name clusters ({one_line(error)}): give a file of '
      'JSON, as {"0": "shoes", "1": "bags"}'
    ) from error
  for number, name in found.items():
    if number not in names or not isinstance(name, str) or not name:
      raise InputError(
        f'{file} names cluster {number!r} {name!r}: clusters are 0 to '
        f'{num_clusters - 1}, and names texts'
      )
  return list((names | found).values())

"""The map on the page: points to pan, select and save, which Bokeh draws.

Axes: N images, n images on the map, H height, W width, C channels, K clusters,
G classes, T thumbnails.
"""

import functools
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from jaxclust.report import figures, maps, pictures

# Maximum number of images on the map; of thumbnails; and of these where they
# take little room.
_POINTS, _THUMBNAILS, _MOST_THUMBNAILS = 60_000, 10_000, 20_000

# Bytes of a sheet of thumbnails that takes little room.
_SMALL_SHEET = 5 * 2**20

# Maximum height and width in pixels of a thumbnail.
_SIDE = 32

# Maximum pixels of a sheet of thumbnails that is kept without loss.
_LOSSLESS = 2**21

# Number of points from which they are drawn smaller.
_DENSE = 10_000

# Numbers that are told beside the pointer.
_TOLD = ('cluster', 'confidence', 'outlier')

# Height of the map, and of a picture beside the pointer, in pixels of CSS.
_HEIGHT, _TIP = 560, 96


def build(
  path: pathlib.Path,
  images: np.ndarray,
  places: dict[str, np.ndarray],
  groups: dict[str, np.ndarray],
  names: dict[str, Sequence[str]],
  values: dict[str, np.ndarray],
  files: Sequence[str] = (),
  split: str = 'train',
) -> dict:
  """Writes thumbnails of images `[N, H, W, C]` to a path; returns what the
  script of the page takes, as JSON has it.

  Args:
    path: of the sheet of thumbnails, a WebP file.
    images: uint8, or floats from 0 to 1.
    places: map -> places `[N, 2]`.
    groups: 'cluster' and, if known, 'class' -> numbers `[N]`.
    names: of these numbers.
    values: name -> numbers `[N]` that the page tells of an image.
    files: `[N]` names; () where there are none.
    split: of the images, which names them where they have no files.
  """
  rows = maps.evenly(len(images), _POINTS)
  labels = groups['cluster'][rows]
  shown = rows[_spread(labels, _THUMBNAILS)]
  columns, height, width = _save(path, images[shown])
  room = int(len(shown) / path.stat().st_size * _SMALL_SHEET)
  if len(shown) < min(room, len(rows)):
    shown = rows[_spread(labels, min(room, _MOST_THUMBNAILS))]
    columns, height, width = _save(path, images[shown])
  cells = np.full(len(images), len(shown))
  cells[shown] = np.arange(len(shown))
  zoom = max(1, round(_TIP / max(height, width)))
  data = {
    'row': rows,
    'pictured': cells[rows] < len(shown),
    'left': cells[rows] % columns * width * zoom,
    'top': cells[rows] // columns * height * zoom,
    **{name: own[rows] for name, own in groups.items()},
  }
  data = {name: own.astype(np.int32) for name, own in data.items()}
  for name, own in values.items():
    data[name] = own[rows].astype(np.float32)
  for name, own in places.items():
    data[f'{name}_x'], data[f'{name}_y'] = own[rows].T.astype(np.float32)
  size = {'width': width, 'height': height, 'columns': columns, 'zoom': zoom}
  return {
    'item': _plot(data, names, size),
    'places': list(places),
    'names': {name: list(own) for name, own in names.items()},
    'values': list(values),
    'split': split,
    'files': [files[row] for row in rows] if files else [],
    'colors': figures.COLORS,
    **size,
  }


def _save(path, images):
  """Writes thumbnails of images, and an empty one, as a sheet; returns how many
  stand in a row, and their height and width."""
  step = -(-max(images.shape[1:3]) // _SIDE)
  small = pictures.as_bytes(images[:, ::step, ::step])
  blank = np.full((1, *small.shape[1:]), 128, np.uint8)
  columns = int(np.ceil(np.sqrt(len(images) + 1)))
  sheet = pictures.sheet(np.concatenate([small, blank]), columns)
  pictures.save_image(path, sheet, lossless=sheet[..., 0].size <= _LOSSLESS)
  return columns, *small.shape[1:3]


def _spread(labels, most):
  """Numbers of at most so many points, as many of each cluster as can be."""
  if len(labels) <= most:
    return np.arange(len(labels))
  order, sizes = np.argsort(labels, kind='stable'), np.bincount(labels)
  members = np.split(order, np.cumsum(sizes)[:-1])
  kept = [
    own[maps.evenly(len(own), count)]
    for own, count in zip(members, _quota(sizes, most), strict=True)
  ]
  return np.sort(np.concatenate(kept))


def _quota(sizes, most):
  """How many of each cluster are shown: the same number, or all."""
  low, high = 0, int(sizes.max())
  while low < high:
    middle = (low + high + 1) // 2
    if np.minimum(sizes, middle).sum() <= most:
      low = middle
    else:
      high = middle - 1
  return np.minimum(sizes, low)


def _plot(data, names, size):
  """The plot as JSON; imports of Bokeh take a second."""
  from bokeh.embed import json_item
  from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool
  from bokeh.plotting import figure
  from bokeh.transform import linear_cmap

  first = next(name for name in data if name.endswith('_x'))
  place = first.removesuffix('_x')
  data |= {'x': data[first], 'y': data[f'{place}_y'], 'group': data['cluster']}
  source = ColumnDataSource(data, name='images')
  number = max(map(len, names.values()))
  palette = [figures.COLORS[i % len(figures.COLORS)] for i in range(number)]
  plot = figure(
    name='plot',
    height=_HEIGHT,
    sizing_mode='stretch_width',
    output_backend='webgl',
    match_aspect=True,
    tools='pan,wheel_zoom,box_zoom,box_select,lasso_select,tap,undo,reset',
    active_drag='pan',
    active_scroll='wheel_zoom',
    toolbar_location='above',
    background_fill_alpha=0,
    border_fill_alpha=0,
    outline_line_color=None,
  )
  plot.axis.visible = False
  plot.grid.visible = False
  plot.toolbar.logo = None
  places = {'x': 'x', 'y': 'y', 'source': source, 'line_color': None}
  plot.scatter(
    **places,
    view=CDSView(filter=BooleanFilter(name='shown')),
    size=6 if len(data['row']) < _DENSE else 3,
    fill_color=linear_cmap('group', palette, -0.5, number - 0.5),
    fill_alpha=0.8,
    nonselection_fill_alpha=0.12,
  )
  pictured = plot.scatter(  # what the pointer finds
    **places,
    view=CDSView(filter=BooleanFilter(name='pictured')),
    size=10,
    fill_alpha=0,
    nonselection_fill_alpha=0,
  )
  plot.add_tools(
    HoverTool(
      renderers=[pictured],
      limit=1,
      tooltips=_tooltip(size, [n for n in _TOLD if n in data]),
      point_policy='follow_mouse',
      attachment='horizontal',
    )
  )
  return _renumbered(json_item(plot, 'plot'))


def _renumbered(item):
  """JSON with Bokeh's numbers of its parts from 0 on, as Bokeh goes on counting
  where a process draws several pages."""
  numbers = {}

  def number(found):
    return f'"p{numbers.setdefault(found[0], len(numbers))}"'

  return json.loads(re.sub(r'"p\d+"', number, json.dumps(item)))


def _tooltip(size, names):
  """HTML beside the pointer: the cell of an image on the sheet, and values."""
  width, height = (size[n] * size['zoom'] for n in ('width', 'height'))
  style = (
    f'width:{width}px;height:{height}px;background:var(--sheet) '
    f'-@left{{0}}px -@top{{0}}px / {width * size["columns"]}px auto;'
    'image-rendering:pixelated'
  )
  told = ''.join(f'<div>{name} @{name}{{0.[00]}}</div>' for name in names)
  return f'<div style="{style}"></div>{told}'


@functools.cache
def script() -> str:
  """BokehJS, but for a line of it that writes to the console."""
  from bokeh.resources import Resources

  resources = Resources('inline', components=['bokeh', 'bokeh-gl'])
  parts = [
    text for text in resources.js_raw if 'set_log_level(' not in text[:40]
  ]
  return '\n'.join(parts)

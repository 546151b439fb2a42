"""Figures of a run: charts, and sheets of images.

Axes: N images, H height, W width, C channels, K clusters.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jaxclust import metrics

# Inches of a gallery; of more than 400 there can be no picture.
_TALLEST = 150

# Twenty that differ from one another and from black and white.
_COLORS = (
  *('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee'),
  *('#aa3377', '#994f00', '#44aa99', '#ee8866', '#7f7f7f'),
  *('#332288', '#dd3388', '#88aa22', '#997700', '#0099cc'),
  *('#6633cc', '#cc6633', '#117733', '#cc3311', '#b0a8b9'),
)


def losses(path: pathlib.Path, records: Sequence[dict]) -> None:
  """Draws training and validation loss of each epoch into a PNG."""
  figure = Figure(figsize=(5.5, 3.4), layout='constrained')
  axes = figure.add_subplot()
  for key, label in (('train_loss', 'training'), ('val_loss', 'validation')):
    points = [(r['epoch'], r[key]) for r in records if key in r]
    if points:
      axes.plot(*zip(*points, strict=True), label=label)
  if any(r['train_loss'] > 0 for r in records):
    axes.set_yscale('log')
  axes.set_xlabel('epoch')
  axes.set_ylabel('mean squared error')
  axes.grid(alpha=0.3, which='both')
  axes.legend()
  _save(figure, path)


def confusion(
  path: pathlib.Path,
  classes: np.ndarray,
  labels: np.ndarray,
  num_clusters: int,
  names: Sequence[str],
) -> None:
  """Draws the counts of classes by cluster, matched clusters on the diagonal.

  Args:
    path: of the PNG.
    classes: `[N]` true classes, 0 to C - 1.
    labels: `[N]` clusters.
    num_clusters: K.
    names: of the classes.
  """
  table = metrics.confusion(classes, labels, num_clusters)
  rows, columns = metrics.match(table)
  rest = np.setdiff1d(np.arange(num_clusters), columns)
  matched_rows = np.concatenate([rows, np.setdiff1d(range(len(table)), rows)])
  order = np.concatenate([columns, rest])
  table = table[matched_rows][:, order]
  names = [names[row] for row in matched_rows]
  size = 1.4 + 0.42 * max(table.shape)
  figure = Figure(figsize=(size + 1, size), layout='constrained')
  axes = figure.add_subplot()
  share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
  for (row, column), count in np.ndenumerate(table):
    color = 'white' if share[row, column] > 0.5 else 'black'
    axes.text(
      column, row, count, ha='center', va='center', color=color, fontsize=8
    )
  axes.set_xticks(range(len(order)), order)
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel('cluster')
  axes.set_ylabel('class')
  _save(figure, path)


def purities(path: pathlib.Path, scores: dict[str, Sequence[float]]) -> None:
  """Draws the purities of the clusters of each split, highest first."""
  figure = Figure(figsize=(5.5, 3), layout='constrained')
  axes = figure.add_subplot()
  width = 0.8 / len(scores)
  for i, (split, values) in enumerate(scores.items()):
    places = np.arange(len(values)) + (i - (len(scores) - 1) / 2) * width
    axes.bar(places, sorted(values, reverse=True), width, label=split)
  axes.set_ylim(0, 1)
  axes.set_xlabel('clusters, purest first')
  axes.set_ylabel('purity')
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3, axis='y')
  axes.legend()
  _save(figure, path)


def sizes(
  path: pathlib.Path,
  labels: np.ndarray,
  confidence: np.ndarray,
  num_clusters: int,
) -> None:
  """Draws how many points each cluster has, and how sure they are of it.

  Args:
    path: of the PNG.
    labels: `[N]` clusters.
    confidence: `[N]` from 0 to 1.
    num_clusters: K.
  """
  figure = Figure(figsize=(5.5, 3), layout='constrained')
  left, right = figure.subplots(1, 2)
  counts = np.bincount(labels, minlength=num_clusters)
  left.bar(range(num_clusters), counts)
  left.set_xlabel('cluster')
  left.set_ylabel('images')
  left.xaxis.get_major_locator().set_params(integer=True)
  right.hist(confidence, bins=np.linspace(0, 1, 21))
  right.set_yscale('log')
  right.set_xlabel('confidence')
  right.set_ylabel('images')
  for axes in (left, right):
    axes.grid(alpha=0.3, axis='y')
  _save(figure, path)


def convergence(path: pathlib.Path, histories: np.ndarray, score: str) -> None:
  """Draws the score of each restart after each step.

  Args:
    path: of the PNG.
    histories: `[S, R]` of S steps and R restarts; one that has stopped repeats
      its last score.
    score: its name.
  """
  figure = Figure(figsize=(5.5, 3.2), layout='constrained')
  axes = figure.add_subplot()
  steps = np.arange(1, len(histories) + 1)
  for history in histories.T:
    moving = np.flatnonzero(np.diff(history, prepend=np.nan)).max(initial=0)
    axes.plot(steps[: moving + 1], history[: moving + 1], linewidth=1)
    axes.plot(steps[moving], history[moving], 'o', color='0.4', markersize=3)
  axes.set_xlabel('step')
  axes.set_ylabel(score.replace('_', ' '))
  axes.grid(alpha=0.3)
  _save(figure, path)


def scatter(
  path: pathlib.Path,
  points: np.ndarray,
  groups: np.ndarray,
  names: Sequence[str],
) -> None:
  """Draws points `[n, 2]` in the colors of their groups `[n]`, 0 to G - 1."""
  figure = Figure(figsize=(5.5, 4.4), layout='constrained')
  axes = figure.add_subplot()
  for group, name in enumerate(names):
    own = points[groups == group]
    axes.scatter(*own.T, s=6, color=color(group), label=name, linewidths=0)
  axes.set_aspect('equal', 'datalim')
  axes.set_xticks([])
  axes.set_yticks([])
  figure.legend(loc='outside right upper', markerscale=2, fontsize=8)
  _save(figure, path)


def color(group: int) -> str:
  """The color of a group, as hexadecimal RGB."""
  return _COLORS[group % len(_COLORS)]


def sheet(images: np.ndarray, num_columns: int, gap: int = 0) -> np.ndarray:
  """Lays images out row by row on grey.

  Args:
    images: `[N, H, W, C]`.
    num_columns: images in a row.
    gap: pixels of grey below and beside each.

  Returns:
    `[ceil(N / num_columns) (H + gap), num_columns (W + gap), C]` bytes.
  """
  num_images, height, width, channels = images.shape
  num_rows = -(-num_images // num_columns)
  cell = (height + gap, width + gap, channels)
  cells = np.full((num_rows * num_columns, *cell), 128, np.uint8)
  cells[:num_images, :height, :width] = as_bytes(images)
  cells = cells.reshape(num_rows, num_columns, *cell).swapaxes(1, 2)
  return cells.reshape(num_rows * cell[0], num_columns * cell[1], channels)


def gallery(
  path: pathlib.Path,
  images: np.ndarray,
  rows: Sequence[np.ndarray],
  titles: Sequence[str],
) -> None:
  """Draws a line of images for each title.

  Args:
    path: of the PNG.
    images: `[N, H, W, C]`.
    rows: of the images in each line.
    titles: of the lines.
  """
  longest = max(map(len, rows))
  lines = np.full((len(rows), longest, *images.shape[1:]), 128, np.uint8)
  for line, own in zip(lines, rows, strict=True):
    line[: len(own)] = as_bytes(images[own])
  canvas = _colors(sheet(lines.reshape(-1, *images.shape[1:]), longest, gap=1))
  inches = min(0.6, _TALLEST / len(rows))  # of a line
  height, width = images.shape[1:3]
  size = 1.5 + inches * longest * width / height, 0.3 + inches * len(rows)
  figure = Figure(figsize=size, layout='constrained')
  axes = figure.add_subplot()
  axes.imshow(canvas, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
  middles = (np.arange(len(rows)) + 0.5) * (height + 1)
  axes.set_yticks(middles, titles, fontsize=8)
  axes.set_xticks([])
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  _save(figure, path)


def as_bytes(images: np.ndarray) -> np.ndarray:
  """Images as bytes: floats from 0 to 1 become 0 to 255, others are cut."""
  if images.dtype == np.uint8:
    return images
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def save_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes an image `[H, W, C]`, of bytes, as a PNG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_colors(image)).save(path)


def _colors(image):
  """An image `[H, W, C]` as a picture; of two channels or more than four, which
  no picture has, the first `[H, W]`."""
  return image if image.shape[2] in (3, 4) else image[..., 0]


def sweep(path: pathlib.Path, records: Sequence[dict], choices: dict) -> None:
  """Draws each criterion over the number of clusters, with its choice."""
  figure = Figure(figsize=(3.2 * len(choices), 3), layout='constrained')
  records = sorted(records, key=lambda record: record['num_clusters'])
  for axes, (name, choice) in zip(
    figure.subplots(1, len(choices)), choices.items(), strict=True
  ):
    points = [
      (r['num_clusters'], r[name]) for r in records if r[name] is not None
    ]
    if points:
      axes.plot(*zip(*points, strict=True), marker='o', markersize=4)
    if choice is not None:
      axes.axvline(choice, color='0.6', linestyle='--', zorder=0)
    axes.set_title(name if choice is None else f'{name}: {choice}')
    axes.set_xlabel('clusters')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
  _save(figure, path)


def benchmark(path: pathlib.Path, rows: Sequence[dict]) -> None:
  """Draws how many times as long each peer takes, with the spread of rounds,
  and the seconds of the rows without a peer."""
  panels = [
    (draw, part)
    for draw, part in (
      (_draw_ratios, [row for row in rows if row['ratio']]),
      (_draw_seconds, [row for row in rows if not row['ratio']]),
    )
    if part
  ]
  heights = [1.2 + _inches(part) for _, part in panels]
  figure = Figure(figsize=(9, sum(heights)), layout='constrained')
  all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[
    :, 0
  ]
  for axes, (draw, part) in zip(all_axes, panels, strict=True):
    draw(axes, part)
    axes.set_yticks(range(len(part)), [row['name'] for row in part])
    axes.invert_yaxis()
  _save(figure, path)


def _inches(rows):
  """The height of rows, of a bar for each contestant."""
  return 0.15 * sum(1 + len(row['seconds']) for row in rows)


def _draw_ratios(axes, rows):
  names = list(dict.fromkeys(name for row in rows for name in row['ratio']))
  height = 0.8 / len(names)
  for i, name in enumerate(names):
    found = [
      (place + (i - (len(names) - 1) / 2) * height, row['ratio'][name])
      for place, row in enumerate(rows)
      if name in row['ratio']
    ]
    places = [place for place, _ in found]
    medians = np.array([ratio['median'] for _, ratio in found])
    ends = [[r['least'], r['largest']] for _, r in found]
    spread = np.abs(np.array(ends).T - medians[None])
    options = {'left': 1, 'xerr': spread, 'label': name}
    bars = axes.barh(places, medians - 1, height, **options)
    axes.bar_label(bars, [f'{m:.1f}' for m in medians], padding=6, fontsize=8)
  axes.axvline(1, color='black', linewidth=1)
  axes.set_xscale('log')
  axes.xaxis.set_major_formatter('{x:g}')
  axes.xaxis.set_minor_formatter('')
  axes.set_xlabel('seconds of the peer over those of jaxclust')
  axes.margins(x=0.15)
  axes.legend()


def _draw_seconds(axes, rows):
  medians = [1e3 * row['median']['jaxclust'] for row in rows]
  bars = axes.barh(range(len(rows)), medians)
  axes.bar_label(bars, [f'{m:.2g}' for m in medians], padding=3, fontsize=8)
  axes.set_xlabel('milliseconds')
  axes.margins(x=0.1)


def _save(figure, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=160)

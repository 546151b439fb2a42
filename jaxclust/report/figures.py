"""Figures of a run: charts, and galleries of images.

Functions that take a path write a PNG file there, create its folder and return
the path. A chart that cannot be drawn is a warning, and its path None: nothing
that only draws ends a run.

Axes: N images, H height, W width, C channels, K clusters, G groups or classes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import optimize

from jaxclust import checks, metrics
from jaxclust.errors import one_line
from jaxclust.report import pictures
from jaxclust.report.fonts import readable

# Maximum height of a gallery in inches; Matplotlib cannot draw above 400.
_MAX_HEIGHT = 150

# Colors of groups: distinct from one another and from black and white.
COLORS = (
  *('#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee'),
  *('#aa3377', '#994f00', '#44aa99', '#ee8866', '#7f7f7f'),
  *('#332288', '#dd3388', '#88aa22', '#997700', '#0099cc'),
  *('#6633cc', '#cc6633', '#117733', '#cc3311', '#b0a8b9'),
)


# Maximum classes or clusters that a chart names and counts.
_MOST_NAMES = 60


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
  """Warns where a file cannot be drawn; a disk that takes no more is still an
  error."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    why = f'{type(error).__name__}: {one_line(error)}'
    checks.warn(f'{name} cannot be drawn ({why}); results are complete')


def _chart(draw: Callable) -> Callable:
  """Lets a function draw in Matplotlib's own style, whatever the user's is, and
  return None where it cannot."""

  @functools.wraps(draw)
  def drawn(path, *args):
    with drawing(path.name), matplotlib.rc_context():
      matplotlib.rcdefaults()
      return draw(path, *args)

  return drawn


@_chart
def losses(path: Path, records: Sequence[dict]) -> Path:
  """Draws 'train_loss' and, where a record has it, 'val_loss' over epochs."""
  axes = _axes(5.5, 3.4, xlabel='epoch', ylabel='loss')
  for key, label in (('train_loss', 'training'), ('val_loss', 'validation')):
    points = [(r['epoch'], r[key]) for r in records if key in r]
    if points:
      axes.plot(*zip(*points, strict=True), label=label)
  if all(r['train_loss'] > 0 for r in records):
    axes.set_yscale('log')
  axes.grid(alpha=0.3, which='both')
  axes.legend()
  return _save(axes.figure, path)


@_chart
def confusion(
  path: Path,
  classes: np.ndarray,
  labels: np.ndarray,
  num_clusters: int,
  names: Sequence[str],
  xlabel: str = 'cluster',
  ylabel: str = 'class',
) -> Path:
  """Draws counts of images by class `[N]`, of which there are G, and cluster
  `[N]`, 0 to K - 1, with matched pairs of class and cluster on the diagonal."""
  names = readable(names)
  table = metrics.confusion(classes, labels, num_clusters)
  pairs = optimize.linear_sum_assignment(table, maximize=True)
  rows, columns = (
    np.concatenate([matched, np.setdiff1d(range(size), matched)])
    for matched, size in zip(pairs, table.shape, strict=True)
  )
  table = table[rows][:, columns]
  many = max(table.shape) > _MOST_NAMES
  size = 1.4 + 0.42 * min(max(table.shape), _MOST_NAMES)
  axes = _axes(size + 1, size, xlabel=xlabel, ylabel=ylabel)
  share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
  axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
  if many:
    axes.set(xticks=[], yticks=[])
    return _save(axes.figure, path)
  options = {'ha': 'center', 'va': 'center', 'fontsize': 8}
  for (row, column), count in np.ndenumerate(table):
    color = 'white' if share[row, column] > 0.5 else 'black'
    axes.text(column, row, count, color=color, **options)
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), [names[row] for row in rows])
  return _save(axes.figure, path)


@_chart
def purities(path: Path, scores: dict[str, Sequence[float]]) -> Path:
  """Draws the purity of each of K clusters in each split."""
  axes = _axes(5.5, 3, xlabel='cluster', ylabel='purity')
  width = 0.8 / len(scores)
  for i, (split, values) in enumerate(scores.items()):
    places = np.arange(len(values)) + (i - (len(scores) - 1) / 2) * width
    axes.bar(places, values, width, label=split)
  axes.set_ylim(0, 1)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3, axis='y')
  axes.legend()
  return _save(axes.figure, path)


@_chart
def sizes(
  path: Path, labels: np.ndarray, confidence: np.ndarray, num_clusters: int
) -> Path:
  """Draws the sizes of K clusters from labels `[N]`, and a histogram of
  confidence `[N]`, from 0 to 1."""
  figure = Figure(figsize=(5.5, 3), layout='constrained')
  left, right = figure.subplots(1, 2)
  left.bar(range(num_clusters), np.bincount(labels, minlength=num_clusters))
  left.set(xlabel='cluster', ylabel='images')
  left.xaxis.get_major_locator().set_params(integer=True)
  right.hist(confidence, bins=np.linspace(0, 1, 21))
  right.set(xlabel='confidence', ylabel='images', yscale='log')
  for axes in (left, right):
    axes.grid(alpha=0.3, axis='y')
  return _save(figure, path)


@_chart
def reliability(
  path: Path, confidence: np.ndarray, kept: np.ndarray, count: np.ndarray
) -> Path:
  """Draws the share of images that keep their cluster over their confidence, of
  bins `[B]` with a number of images."""
  axes = _axes(5.5, 3, xlabel='confidence', ylabel='kept in others')
  axes.plot([0, 1], [0, 1], color='0.6', linewidth=1)
  axes.plot(confidence, kept, color='C0', linewidth=1)
  axes.scatter(confidence, kept, 5 + 95 * count / count.max(), color='C0')
  axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
  return _save(axes.figure, path)


@_chart
def convergence(path: Path, histories: np.ndarray, score: str) -> Path:
  """Draws the score of each restart after each step from histories `[S, R]` of
  S steps and R restarts; a restart that has stopped repeats its last score."""
  label = score.replace('_', ' ')
  axes = _axes(5.5, 3.2, xlabel='step', ylabel=label)
  steps = np.arange(1, len(histories) + 1)
  for history in histories.T:
    last = np.flatnonzero(np.diff(history, prepend=np.nan)).max(initial=0)
    axes.plot(steps[: last + 1], history[: last + 1], linewidth=1)
    axes.plot(steps[last], history[last], 'o', color='0.4', markersize=3)
  axes.grid(alpha=0.3)
  return _save(axes.figure, path)


@_chart
def scatter(
  path: Path, points: np.ndarray, groups: np.ndarray, names: Sequence[str]
) -> Path:
  """Draws points `[N, 2]` in the colors of their groups `[N]`, 0 to G - 1."""
  names = readable(names)
  axes = _axes(5.5, 4.4, xticks=[], yticks=[])
  for group, label in enumerate(names):
    color = COLORS[group % len(COLORS)]
    own = points[groups == group].T
    axes.scatter(*own, s=6, color=color, label=label, linewidths=0)
  axes.set_aspect('equal', 'datalim')
  if len(names) <= _MOST_NAMES:
    axes.figure.legend(loc='outside right upper', markerscale=2, fontsize=8)
  return _save(axes.figure, path)


@_chart
def sweep(path: Path, records: Sequence[dict], choices: dict) -> Path:
  """Draws each criterion over the number of clusters, and marks its choice.

  Both a criterion and a choice may be None.
  """
  columns = -(-len(choices) // 2)
  figure = Figure(figsize=(3.2 * columns, 6), layout='constrained')
  all_axes = figure.subplots(2, columns, squeeze=False).ravel()
  records = sorted(records, key=lambda record: record['num_clusters'])
  for axes, (name, choice) in zip(all_axes, choices.items(), strict=False):
    points = [
      (r['num_clusters'], r[name]) for r in records if r[name] is not None
    ]
    if points:
      axes.plot(*zip(*points, strict=True), marker='o', markersize=4)
    if choice is not None:
      axes.axvline(choice, color='0.6', linestyle='--', zorder=0)
    title = name if choice is None else f'{name}: {choice}'
    axes.set(title=title, xlabel='clusters')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
  return _save(figure, path)


@_chart
def leaderboard(path: Path, rows: Sequence[dict]) -> Path:
  """Draws the accuracy of each method on the first split: a point for a seed, a
  bar for the mean."""
  axes = _axes(7, 1 + 0.4 * len(rows), xlabel='ACC')
  scores = [row['train']['acc'] for row in rows]
  means = [np.mean(own) for own in scores]
  bars = axes.barh([row['name'] for row in rows], means, color='0.8')
  for place, own in enumerate(scores):
    axes.plot(own, [place] * len(own), 'o', color=COLORS[0], markersize=4)
  axes.bar_label(bars, [f'{mean:.3f}' for mean in means], label_type='center')
  axes.set_xlim(0, 1.08)
  axes.invert_yaxis()
  return _save(axes.figure, path)


@_chart
def benchmark(path: Path, rows: Sequence[dict]) -> Path:
  """Draws rows of `benchmark.measure`: the ratio of each peer's time to that of
  jaxclust, with its spread over rounds; the time of rows without a peer."""
  compared = [row for row in rows if row['ratio']]
  alone = [row for row in rows if not row['ratio']]
  panels = (_draw_ratios, compared), (_draw_times, alone)
  panels = [(draw, part) for draw, part in panels if part]
  heights = [
    1.2 + 0.15 * sum(1 + len(row['seconds']) for row in part)
    for _, part in panels
  ]
  figure = Figure(figsize=(9, sum(heights)), layout='constrained')
  grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
  for axes, (draw, part) in zip(grid[:, 0], panels, strict=True):
    draw(axes, part)
    axes.set_yticks(range(len(part)), [row['name'] for row in part])
    axes.invert_yaxis()
  return _save(figure, path)


def _draw_ratios(axes, rows):
  peers = list(dict.fromkeys(name for row in rows for name in row['ratio']))
  height = 0.8 / len(peers)
  for i, peer in enumerate(peers):
    places = [place for place, row in enumerate(rows) if peer in row['ratio']]
    least, medians, largest = np.array(
      [
        [rows[place]['ratio'][peer][name] for place in places]
        for name in ('least', 'median', 'largest')
      ]
    )
    offset = (i - (len(peers) - 1) / 2) * height
    bars = axes.barh(
      np.add(places, offset),
      medians - 1,
      height,
      left=1,
      xerr=(medians - least, largest - medians),
      label=peer,
    )
    axes.bar_label(bars, [f'{m:.2g}' for m in medians], padding=6, fontsize=8)
  axes.axvline(1, color='black', linewidth=1)
  axes.set(xscale='log', xlabel='time of the peer / time of jaxclust')
  axes.xaxis.set_major_formatter('{x:g}')
  axes.xaxis.set_minor_formatter('')
  axes.margins(x=0.15)
  axes.legend()


@_chart
def scaling(path: Path, rows: Sequence[dict]) -> Path:
  """Draws seconds over the number of points, for rows of `benchmark.measure`
  that have a size: a panel for a number of features and of clusters."""
  rows = [row for row in rows if row['size']]
  features, clusters = (
    sorted({row['size'][name] for row in rows})
    for name in ('features', 'clusters')
  )
  names = list(dict.fromkeys(name for row in rows for name in row['median']))
  size = 2.6 * len(clusters) + 0.4, 2.2 * len(features) + 0.6
  figure = Figure(figsize=size, layout='constrained')
  grid = figure.subplots(
    *(len(features), len(clusters)), squeeze=False, sharex=True, sharey=True
  )
  for place, axes in np.ndenumerate(grid):
    chosen = {'features': features[place[0]], 'clusters': clusters[place[1]]}
    here = [row for row in rows if chosen.items() <= row['size'].items()]
    for name, color in zip(names, COLORS, strict=False):
      line = [
        (row['size']['points'], row['median'][name])
        for row in here
        if name in row['median']
      ]
      if line:
        axes.plot(
          *zip(*sorted(line), strict=True), 'o-', color=color, label=name
        )
    axes.set(xscale='log', yscale='log')
    axes.xaxis.set_minor_formatter('')
    axes.set_title('{features} features, k = {clusters}'.format(**chosen))
    axes.grid(alpha=0.3)
  figure.supxlabel('points')
  figure.supylabel('seconds')
  grid[0, 0].legend()
  return _save(figure, path)


def _draw_times(axes, rows):
  times = [1e3 * row['median']['jaxclust'] for row in rows]
  bars = axes.barh(range(len(rows)), times)
  axes.bar_label(bars, [f'{t:.2g}' for t in times], padding=3, fontsize=8)
  axes.set_xlabel('milliseconds')
  axes.margins(x=0.1)


@_chart
def gallery(
  path: Path,
  images: np.ndarray,
  rows: Sequence[np.ndarray],
  titles: Sequence[str],
) -> Path:
  """Draws images `[N, H, W, C]` in lines, one for each title, from an array of
  indices for each line."""
  height, width = images.shape[1:3]
  longest = max(map(len, rows))
  lines = np.full((len(rows), longest, *images.shape[1:]), 128, np.uint8)
  for line, own in zip(lines, rows, strict=True):
    line[: len(own)] = pictures.as_bytes(images[own])
  canvas = pictures.sheet(lines.reshape(-1, *images.shape[1:]), longest, gap=1)
  inches = min(0.6, _MAX_HEIGHT / len(rows))  # height of a line
  axes = _axes(
    1.5 + inches * longest * width / height, 0.3 + inches * len(rows), xticks=[]
  )
  options = {'cmap': 'gray', 'vmin': 0, 'vmax': 255}
  axes.imshow(pictures.as_file(canvas), interpolation='nearest', **options)
  middles = (np.arange(len(rows)) + 0.5) * (height + 1)
  axes.set_yticks(middles, titles, fontsize=8)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  return _save(axes.figure, path)


def _axes(width, height, **properties):
  """Returns the axes of a new figure with a size in inches."""
  figure = Figure(figsize=(width, height), layout='constrained')
  axes = figure.add_subplot()
  axes.set(**properties)
  return axes


def _save(figure, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=160)
  return path

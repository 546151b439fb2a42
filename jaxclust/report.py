"""What a person sees of a run: progress, the closing table, the figures."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
from matplotlib.figure import Figure

from jaxclust import metrics

_SCORES = {'ari': 'ARI', 'nmi': 'NMI', 'acc': 'ACC', 'purity': 'purity'}


def say(text: str) -> None:
  """Prints a line as it is."""
  rich.console.Console(soft_wrap=True).print(
    text, markup=False, highlight=False
  )


@contextlib.contextmanager
def progress(phase: str, total: int) -> Iterator[Callable[[int, str], None]]:
  """Shows how far a phase has come: a bar on a terminal, lines in a pipe.

  Args:
    phase: its name.
    total: what counts as all of it.

  Yields:
    A function of how much is done and of a text about the last part.
  """
  if not rich.console.Console().is_terminal:
    yield _lines(phase, total)
    return
  columns = (
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn('{task.fields[text]}'),
  )
  with rich.progress.Progress(*columns) as bar:
    task = bar.add_task(phase, total=total, text='')
    yield lambda done, text: bar.update(task, completed=done, text=text)


def _lines(phase, total):
  """Prints a line a second at most, and one for the end."""
  last = -np.inf

  def show(done, text):
    nonlocal last
    if done >= total or time.monotonic() - last >= 1:
      last = time.monotonic()
      say(f'{phase} {done}/{total}  {text}')

  return show


def closing_table(summary: dict, reference: dict) -> None:
  """Prints the scores of both splits beside those of the report.

  Args:
    summary: with 'train' and 'test' scores as `metrics.scores` gives them,
      where there are labels; of several 'seeds' with their 'mean' and 'std'.
    reference: such scores as published, or what there is of them.
  """
  splits = [s for s in ('train', 'test') if s in summary]
  if not splits:
    say('no labels: there is nothing to compare the clusters with')
    return
  title = summary['experiment']
  if 'seeds' in summary:
    title += f', {len(summary["seeds"])} seeds'
  means, spreads = summary.get('mean', summary), summary.get('std', {})
  columns = [(s, means[s], spreads.get(s, {})) for s in splits]
  columns += [
    (f'report {s}', reference[s], {}) for s in splits if s in reference
  ]
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column(title)
  for heading, *_ in columns:
    table.add_column(heading, justify='right')
  for key, name in _SCORES.items():
    cells = [(scores.get(key), std.get(key)) for _, scores, std in columns]
    table.add_row(name, *(_number(*cell) for cell in cells))
  table.add_section()
  purities = [sorted(s.get('cluster_purity', ())) for _, s, _ in columns]
  for rank in range(max(len(p) for p in purities)):
    cells = [p[-1 - rank] if rank < len(p) else None for p in purities]
    table.add_row(f'purity, rank {rank + 1}', *map(_number, cells))
  rich.console.Console().print(table)


def _number(value, spread=None):
  if value is None:
    return ''
  return f'{value:.4f}' if spread is None else f'{value:.3f} ± {spread:.3f}'


def sweep_table(records: Sequence[dict], choices: dict) -> None:
  """Prints the criteria for each number of clusters, and marks the choices.

  Args:
    records: with 'num_clusters' and each criterion, None where it has no value.
    choices: criterion -> number of clusters.
  """
  table = rich.table.Table(box=rich.box.SIMPLE)
  for title in ('clusters', *choices):
    table.add_column(title, justify='right')
  for record in records:
    count = record['num_clusters']
    table.add_row(
      str(count),
      *(
        ('' if record[name] is None else f'{record[name]:.6g}')
        + ('*' if count == choice else ' ')
        for name, choice in choices.items()
      ),
    )
  rich.console.Console().print(table)
  say('* the choice of the criterion')


def sweep_figure(
  path: pathlib.Path, records: Sequence[dict], choices: dict
) -> None:
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


def benchmark_table(rows: Sequence[dict], limits: dict) -> None:
  """Prints seconds and ratios of the rows that `benchmark.run` yields."""
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column('')
  for title in ('', 'median', 'least to largest', 'ratio', 'least to largest'):
    table.add_column(title, justify='right')
  for row in rows:
    for i, (name, seconds) in enumerate(row['seconds'].items()):
      ratio = row['ratio'].get(name)
      table.add_row(
        row['name'] if i == 0 else '',
        name,
        _seconds(row['median'][name]),
        f'{_seconds(min(seconds))} to {_seconds(max(seconds))}',
        '' if ratio is None else f'{ratio["median"]:.2f}',
        ''
        if ratio is None
        else f'{ratio["least"]:.2f} to {ratio["largest"]:.2f}',
      )
    table.add_row(
      '',
      'limit',
      _seconds(row['limit']),
      '',
      f'{row["share_of_limit"]:.2f}',
      '',
    )
  rich.console.Console(width=128).print(table)
  say(
    'ratio: the seconds of the row over those of the first; limit: the plain '
    f'algorithm at {limits["operations_per_second"] / 1e9:.0f} GFLOP/s and '
    f'{limits["bytes_per_second"] / 1e9:.1f} GB/s, as measured here, and its '
    'share of our time, above 1 where caches or bounds spare work'
  )


def _seconds(value):
  return f'{value:.3g} s' if value >= 0.1 else f'{1e3 * value:.3g} ms'


def benchmark_figure(path: pathlib.Path, rows: Sequence[dict]) -> None:
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


def loss_curve(path: pathlib.Path, records: Sequence[dict]) -> None:
  """Draws training and validation loss of each epoch into a PNG."""
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.add_subplot()
  for key, label in (('train_loss', 'training'), ('val_loss', 'validation')):
    points = [(r['epoch'], r[key]) for r in records if key in r]
    if points:
      axes.plot(*zip(*points, strict=True), label=label)
  axes.set_yscale('log')
  axes.set_xlabel('epoch')
  axes.set_ylabel('mean squared error')
  axes.grid(alpha=0.3, which='both')
  axes.legend()
  _save(figure, path)


def confusion_figure(
  path: pathlib.Path,
  classes: np.ndarray,
  labels: np.ndarray,
  num_clusters: int,
  label_names: Sequence[str],
) -> None:
  """Draws the counts of classes by cluster, matched clusters on the diagonal.

  Args:
    path: of the PNG.
    classes: `[N]` true classes.
    labels: `[N]` clusters.
    num_clusters: K.
    label_names: of the classes 0 to C - 1; () to show the classes themselves.
  """
  table = metrics.confusion(classes, labels, num_clusters)
  rows, columns = metrics.match(table)
  rest = np.setdiff1d(np.arange(num_clusters), columns)
  matched_rows = np.concatenate([rows, np.setdiff1d(range(len(table)), rows)])
  order = np.concatenate([columns, rest])
  table = table[matched_rows][:, order]
  names = [
    label_names[int(c)] if label_names else str(c)
    for c in np.unique(classes)[matched_rows]
  ]
  size = 1.8 + 0.55 * max(table.shape)
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


def _save(figure, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)

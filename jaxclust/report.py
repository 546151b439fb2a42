"""What a person sees of a run: progress, the closing tables."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table

_SCORES = {
  'ari': 'ARI, adjusted Rand index',
  'nmi': 'NMI, normalized mutual information',
  'acc': 'ACC, matched one to one',
  'purity': 'purity',
}
_SPLITS = ('images', 'train', 'test')
_SECONDS_OF_SILENCE = 2

_FIT_SCORES = {
  'silhouette': 'silhouette',
  'stability': 'stability, ARI of the restarts',
  'bic': 'BIC',
  'log_likelihood': 'log-likelihood of an image',
  'inertia': 'inertia',
}


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
    rich.progress.TaskProgressColumn('', show_speed=True),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn('{task.fields[text]}'),
  )
  with rich.progress.Progress(*columns) as bar:
    task = bar.add_task(phase, total=total, text='')
    yield lambda done, text: bar.update(task, completed=done, text=text)


@contextlib.contextmanager
def working(phase: str) -> Iterator[None]:
  """Tells that a phase goes on whose end is not known, if it takes longer than
  two seconds: a clock on a terminal, a line in a pipe."""
  console = rich.console.Console()
  if console.is_terminal:
    shown = rich.progress.Progress(
      rich.progress.SpinnerColumn(),
      rich.progress.TextColumn('{task.description}'),
      rich.progress.TimeElapsedColumn(),
      transient=True,
    )
    shown.add_task(phase, total=None)
    start, stop = shown.start, shown.stop
  else:
    start, stop = (lambda: say(f'{phase} ...')), (lambda: None)
  timer = threading.Timer(_SECONDS_OF_SILENCE, start)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    timer.join()
    stop()


def _lines(phase, total):
  """Prints a line a second at most, and one for the end."""
  last = -np.inf

  def show(done, text):
    nonlocal last
    if done >= total or time.monotonic() - last >= 1:
      last = time.monotonic()
      say(f'{phase} {done}/{total}  {text}')

  return show


def headline(summary: dict, reference: dict) -> list[list[str]]:
  """The scores of a run beside those of the report, as text.

  Args:
    summary: with 'train' and 'test' scores (or those of 'images') as
      `metrics.scores` gives them, where there are labels, and those of the
      'fit'; of several 'seeds' with their 'mean' and 'std'.
    reference: such scores as published, or what there is of them.

  Returns:
    The rows of a table, of which the first is its head; without labels, of what
    needs none.
  """
  means, spreads = summary.get('mean', summary), summary.get('std', {})
  splits = [s for s in _SPLITS if s in means]
  if not splits:
    fit, spread = means.get('fit', {}), spreads.get('fit', {})
    rows = [
      [title, _number(fit[name], spread.get(name))]
      for name, title in _FIT_SCORES.items()
      if name in fit
    ]
    return [['', 'all images'], *rows] if rows else []
  published = [s for s in splits if s in reference]
  rows = [['', *splits, *(f'report, {s}' for s in published)]]
  for name, title in _SCORES.items():
    own = [
      _number(means[s][name], spreads.get(s, {}).get(name)) for s in splits
    ]
    theirs = [_number(reference[s].get(name)) for s in published]
    rows.append([title, *own, *theirs])
  return rows


def _number(value, spread=None):
  if value is None:
    return ''
  text = f'{value:.4f}' if abs(value) < 10 else f'{value:,.6g}'
  return text if spread is None else f'{text} ± {spread:.4f}'


def closing_table(summary: dict, reference: dict) -> None:
  """Prints the headline, and the sorted purities where there are labels."""
  head, *rows = headline(summary, reference) or [[]]
  title = summary['experiment']
  if 'seeds' in summary:
    title += f', {len(summary["seeds"])} seeds'
  table = rich.table.Table(box=rich.box.SIMPLE)
  for i, heading in enumerate(head):
    table.add_column(heading or title, justify='right' if i else 'left')
  for name, *cells in rows:
    table.add_row(name.partition(',')[0], *cells)
  means = summary.get('mean', summary)
  splits = [
    scores[split]['cluster_purity']
    for scores in (means, reference)
    for split in _SPLITS
    if split in means and split in scores
  ]
  table.add_section()
  purities = [sorted(purity, reverse=True) for purity in splits]
  for rank, cells in enumerate(itertools.zip_longest(*purities), start=1):
    table.add_row(f'purity, rank {rank}', *map(_number, cells))
  rich.console.Console().print(table)


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

"""Output on the terminal: messages, progress, tables of results."""

import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table

# Splits with labels, in the order of columns.
_SPLITS = ('images', 'train', 'test')

# Titles of scores, in the order of rows; the short name ends at the comma.
_TITLES = {
  'ari': 'ARI, adjusted Rand index',
  'nmi': 'NMI, normalized mutual information',
  'acc': 'ACC, matched one to one',
  'purity': 'purity',
  'silhouette': 'silhouette',
  'stability': 'stability, ARI of the restarts',
  'kept': 'kept by other clusterings',
  'confidence_error': 'error of the confidence',
  'bic': 'BIC',
  'log_likelihood': 'log-likelihood of an image',
  'inertia': 'inertia',
}

# Scores in the table of seeds.
_SEED_SCORES = ('ari', 'nmi', 'acc')

# Text of a score that the run does not have.
_MISSING = '-'

# Columns of the terminal that the widest tables need.
_WIDE = 160

# Seconds after which `working` prints.
_SECONDS_OF_SILENCE = 2


def say(text: str) -> None:
  """Prints a line without markup."""
  rich.console.Console(soft_wrap=True).print(
    text, markup=False, highlight=False
  )


@contextlib.contextmanager
def progress(phase: str, total: int) -> Iterator[Callable[[int, str], None]]:
  """Shows the progress of a phase: a bar on a terminal; in a pipe a line, at
  most once a second, and at the end.

  Yields:
    A function of the number of finished parts, of `total`, and a text about the
    last one.
  """
  if not rich.console.Console().is_terminal:
    last = -np.inf

    def show(done, text):
      nonlocal last
      if done >= total or time.monotonic() - last >= 1:
        last = time.monotonic()
        say(f'{phase} {done}/{total}  {text}')

    yield show
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
  """Shows that a phase of unknown length is running, once it has taken two
  seconds: a clock on a terminal, a line in a pipe."""
  # Not by rich, which imports modules as it prints: beside an import of TFDS in
  # another thread, which replaces Python's import for a while, that fails.
  start = functools.partial(print, phase, '...', flush=True)
  stop = functools.partial(print, end='')
  if rich.console.Console().is_terminal:
    clock = rich.progress.Progress(
      rich.progress.SpinnerColumn(),
      rich.progress.TextColumn('{task.description}'),
      rich.progress.TimeElapsedColumn(),
      transient=True,
    )
    clock.add_task(phase, total=None)
    start, stop = clock.start, clock.stop
  timer = threading.Timer(_SECONDS_OF_SILENCE, start)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    timer.join()
    stop()


@contextlib.contextmanager
def timed(seconds: dict, phase: str, quietly: bool = False) -> Iterator[None]:
  """Adds the seconds of a phase to those before; shows that it goes on, unless
  it shows its progress itself."""
  begun = time.perf_counter()
  with contextlib.nullcontext() if quietly else working(phase):
    yield
  seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - begun


def headline(summary: dict, reference: dict) -> list[list[str]]:
  """Returns the scores of a run beside published ones, as text.

  Without labels these are the scores of the fit. A summary has scores by split,
  see `metrics.scores`, and those of the 'fit'; with several 'seeds', a list of
  such scores, also their 'mean' and 'std'. A reference may lack any of them.

  Returns:
    The rows of a table, the first of which is its head; [] without scores.

  >>> headline({'fit': {'bic': -1234.5}}, {})
  [['', 'all images'], ['BIC', '-1,234.5']]
  """
  runs = [summary.get('mean', summary), *summary.get('seeds', ())]
  parts = [s for s in _SPLITS if any(s in run for run in runs)] or ['fit']
  published = [s for s in parts if s in reference]
  rows = [
    [
      title,
      *(own_score(summary, part, name) for part in parts),
      *(_number(_score(reference, part, name)) for part in published),
    ]
    for name, title in _TITLES.items()
    if any(_score(run, p, name) is not None for run in runs for p in parts)
  ]
  heads = ['all images' if parts == ['fit'] else part for part in parts]
  head = ['', *heads, *(f'report, {part}' for part in published)]
  return [head, *rows] if rows else []


def seed_scores(summary: dict) -> list[list[str]]:
  """Returns the scores of each seed, or of each member of a committee, and of
  their vote, as the rows of a table, see `headline`; their criteria too, which
  need no labels. Returns [] if there is nothing to tell."""
  kind = 'member' if 'members' in summary else 'seed'
  seeds = summary.get(f'{kind}s', ())
  columns = [
    (split, name)
    for split in _SPLITS
    if any(split in row for row in seeds)
    for name in _SEED_SCORES
  ]
  criteria = summary.get('vote', {}).get('criteria', {})
  head = [kind, *(f'{name.upper()}, {split}' for split, name in columns)]
  named = [(str(row[kind]), row) for row in seeds]
  named += [('vote', summary['vote'])] if 'vote' in summary else []
  rows = [
    [name, *(_number(_score(row, *c)) or _MISSING for c in columns)]
    for name, row in named
  ]
  for name, values in criteria.items():
    head.append(name)
    for row, value in zip(rows, [*values, None], strict=True):
      row.append(_number(value) or _MISSING)
  return [head, *rows] if columns or criteria else []


def own_score(summary: dict, part: str, name: str) -> str:
  """Returns a score of the run as text, and its spread over seeds; if some
  seeds do not have the score, also how many have it."""
  value = _score(summary.get('mean', summary), part, name)
  text = _number(value, _score(summary.get('std', {}), part, name)) or _MISSING
  seeds = summary.get('seeds', ())
  count = sum(_score(row, part, name) is not None for row in seeds)
  return text + f' ({count} of {len(seeds)} seeds)' * (count < len(seeds))


def _score(scores, part, name):
  return scores.get(part, {}).get(name)


def _number(value, spread=None):
  if value is None:
    return ''
  text = f'{value:.4f}' if abs(value) < 10 else f'{value:,.6g}'
  return text if spread is None else f'{text} ± {spread:.4f}'


def results(summary: dict, reference: dict) -> None:
  """Prints the tables of a finished run, see `headline`."""
  if 'sweep' in summary:
    sweep_table(summary['sweep'], summary['choices'])
    say(summary['conclusion'])
  elif 'limits' in summary:
    benchmark_table(summary['rows'], summary['limits'])
  elif 'leaderboard' in summary:
    head, *rows = leaderboard(summary['leaderboard'])
    _print_table(head, rows, width=_WIDE)
    _say_ranks(summary)
  else:
    closing_table(summary, reference)


def closing_table(summary: dict, reference: dict) -> None:
  """Prints the `headline`, with labels the sorted purities of the clusters, and
  the scores of seeds or members, where there are any."""
  if found := headline(summary, reference):
    _print_headline(found, summary, reference)
  if seeds := seed_scores(summary):
    _print_table(seeds[0], seeds[1:], width=_WIDE)
    _say_ranks(summary.get('vote', {}))


def _print_headline(found, summary, reference):
  head, *rows = found
  title = summary['experiment']
  if 'seeds' in summary:
    title += f', {len(summary["seeds"])} seeds'
  means = summary.get('mean', summary)
  purities = [
    sorted(_score(scores, split, 'cluster_purity'), reverse=True)
    for scores in (means, reference)
    for split in _SPLITS
    if all(_score(part, split, 'cluster_purity') for part in (means, scores))
  ]
  ranks = enumerate(itertools.zip_longest(*purities), start=1)
  _print_table(
    [title, *head[1:]],
    [[name.partition(',')[0], *cells] for name, *cells in rows],
    [[f'purity, rank {i}', *map(_number, values)] for i, values in ranks],
  )


def _say_ranks(found):
  """Says how well criteria without labels tell good seeds from bad ones."""
  ranks = {
    name: value
    for name, value in found.get('rank_correlation', {}).items()
    if value is not None
  }
  if ranks:
    told = ', '.join(f'{name} {value:.2f}' for name, value in ranks.items())
    say(f"rank correlation with ACC (Spearman's): {told}")


def sweep_table(records: Sequence[dict], choices: dict) -> None:
  """Prints the criteria for each number of clusters, and marks the choices."""
  rows = []
  for record in records:
    count = record['num_clusters']
    rows.append([str(count)])
    for name, choice in choices.items():
      value = '' if record[name] is None else f'{record[name]:.6g}'
      rows[-1].append(value + ('*' if count == choice else ' '))
  _print_table(['clusters', *choices], rows, width=_WIDE)
  say('* the choice of the criterion')


def leaderboard(rows: Sequence[dict]) -> list[list[str]]:
  """Returns the means and deviations of a leaderboard's scores as the rows of a
  table, see `headline`.

  Args:
    rows: of each method its 'name', 'seconds', the 'agreement' of its seeds,
      and for each split scores of the seeds by name.
  """
  columns = [(s, n) for s in _SPLITS if s in rows[0] for n in rows[0][s]]
  head = ['', *(f'{name.upper()}, {split}' for split, name in columns)]
  head += ['agreement', 'seconds']
  lines = []
  for row in rows:
    scores = [row[split][name] for split, name in columns]
    found = [f'{np.mean(own):.3f} ± {np.std(own):.3f}' for own in scores]
    agreement = f'{np.mean(row["agreement"]):.3f}'
    lines.append([row['name'], *found, agreement, f'{row["seconds"]:.3g}'])
  return [head, *lines]


def left_out(files: Sequence[tuple[str, str]]) -> None:
  """Prints how many files of a folder are left out, by reason; files are each
  a path and a reason."""
  if files:
    reasons = collections.Counter(why for _, why in files).most_common(3)
    told = '; '.join(f'{count:,} {why}' for why, count in reasons)
    say(f'{len(files):,} files are left out ({told}): summary.json names them')


def benchmark_table(rows: Sequence[dict], limits: dict) -> None:
  """Prints times and ratios; rows are those of `benchmark.measure`."""
  lines = []
  for row in rows:
    title = row['name']
    for name, seconds in row['seconds'].items():
      spread = f'{_seconds(min(seconds))} to {_seconds(max(seconds))}'
      lines.append([title, name, _seconds(row['median'][name]), spread])
      if ratio := row['ratio'].get(name):
        spread = f'{ratio["least"]:.2f} to {ratio["largest"]:.2f}'
        lines[-1] += [f'{ratio["median"]:.2f}', spread]
      title = ''
    if row['limit']:
      share = f'{row["share_of_limit"]:.2f}'
      lines.append(['', 'limit', _seconds(row['limit']), '', share])
  head = ['', '', 'median', 'least to largest', 'ratio', 'least to largest']
  _print_table(head, lines, width=_WIDE)
  say(
    'ratio: time of the peer / time of jaxclust; limit: time of the plain '
    f'algorithm at {limits["operations_per_second"] / 1e9:.0f} GFLOP/s and '
    f'{limits["bytes_per_second"] / 1e9:.1f} GB/s, as measured here, and its '
    'ratio to the time of jaxclust, above 1 where caches or bounds save work'
  )


def _seconds(value):
  return f'{value:.3g} s' if value >= 0.1 else f'{1e3 * value:.3g} ms'


def _print_table(head, *sections, width=None):
  """Prints sections of rows, separated by lines; words stand left, numbers
  right."""
  table = rich.table.Table(box=rich.box.SIMPLE)
  for i, title in enumerate(head):
    table.add_column(title, justify='right' if i else 'left')
  for rows in sections:
    for row in rows:
      table.add_row(*row)
    table.add_section()
  rich.console.Console(width=width).print(table)

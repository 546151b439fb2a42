"""The HTML page of a run: one file that contains all its pictures.

Axes: N images, H height, W width, C channels, D features, K clusters, R
restarts, S steps, n images on the map.
"""

import base64
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jinja2
import numpy as np

from jaxclust.report import console, explorer, figures, maps, pictures

_STRIP = 10  # images in a strip
_FOLDER = pathlib.Path(__file__).parent  # of the template and its script


class Findings(NamedTuple):
  """Results of a run that the page shows, on the host."""

  images: np.ndarray  # [N, H, W, C] uint8, or floats from 0 to 1
  places: dict[str, np.ndarray]  # map -> places [N, 2] of the images
  labels: np.ndarray  # [N] clusters, 0 to K - 1
  confidence: np.ndarray  # [N] from 0 to 1
  outlier_score: np.ndarray  # [N] higher for images less like their cluster
  outlier: np.ndarray  # [N] its percentile
  centers: np.ndarray  # [K, H, W, C] centers of the clusters, as images
  classes: np.ndarray | None  # [N] true classes; None if there are none
  class_names: Sequence[str]  # names of the classes; () for their values
  scores: dict  # split -> its scores, as `metrics.scores` returns them
  files: Sequence[str] = ()  # [N] names of the images; () if they have none
  split: str = 'train'  # of the images
  cluster_names: Sequence[str] = ()  # [K]; () for numbers
  losses: Sequence[dict] = ()  # log records of the training
  views: Sequence[np.ndarray] = ()  # some images [n, H, W, C], then their views
  reconstruction_errors: np.ndarray | None = None  # [N]
  reconstruct: Callable | None = None  # images [n, H, W, C] -> the same
  histories: np.ndarray = np.empty((0, 0))  # [S, R] scores of all restarts
  score_name: str = ''  # name of the score in histories
  reliability: tuple | None = None  # of `reliability.calibrate`


class Section(NamedTuple):
  """A part of the page. Each picture is a path and a text that describes it."""

  title: str
  text: str
  charts: Sequence[tuple[pathlib.Path, str]] = ()
  strips: Sequence[tuple[pathlib.Path, str]] = ()
  clusters: Sequence[dict] = ()  # see `_cluster_card`
  map: dict | None = None  # see `explorer.build`
  table: Sequence[Sequence[str]] = ()  # its head, and rows


def draw(findings: Findings, folder: pathlib.Path) -> list[Section]:
  """Draws all pictures of a run as PNG files in a folder; returns the sections
  of the page, in order."""
  if findings.classes is not None:
    values, classes = np.unique(findings.classes, return_inverse=True)
    given = findings.class_names
    names = [given[int(v)] if given else str(v) for v in values]
    findings = findings._replace(classes=classes, class_names=names)
  return list(_sections(findings, folder))


def _sections(findings, folder) -> Iterator[Section]:
  num_clusters = len(findings.centers)
  yield Section(
    'Clusters',
    'The center of each cluster as an image, or the image nearest to it if the '
    'network only encodes; and its members: most typical, least certain, and '
    'misfits.',
    clusters=[_cluster_card(findings, k, folder) for k in range(num_clusters)],
  )
  if findings.places:
    yield _map(findings, folder)
  if findings.scores:
    yield _agreement(findings, folder)
  yield _confidence(findings, folder, num_clusters)
  if findings.reconstruct is not None:
    yield _reconstructions(findings, folder)
  if len(findings.views):
    path = pictures.save_image(
      folder / 'views.png',
      pictures.sheet(np.concatenate(findings.views), len(findings.views[0]), 1),
    )
    yield Section(
      'Views',
      'Some images, and below each what the network is shown of it: it is told '
      'to see the same thing in all of them.',
      strips=[(path, 'images above, their views below')],
    )
  if findings.losses:
    chart = figures.losses(folder / 'loss.png', findings.losses)
    yield Section(
      'Training',
      'Mean squared error of the reconstructions after each epoch.'
      if findings.reconstruct
      else 'The loss of the method after each epoch.',
      charts=[(chart, 'training and validation loss of each epoch')],
    )
  if findings.histories.size:
    chart = figures.convergence(
      folder / 'convergence.png', findings.histories, findings.score_name
    )
    yield Section(
      'Convergence',
      'The score of each restart after each of its steps.',
      charts=[(chart, 'score of each restart after each step')],
    )


def _confidence(findings, folder, num_clusters):
  chart = figures.sizes(
    folder / 'sizes.png', findings.labels, findings.confidence, num_clusters
  )
  charts = [(chart, 'sizes of the clusters, and a histogram of confidence')]
  text = 'The number of images in each cluster, and the confidence of all.'
  if findings.reliability is not None:
    path = folder / 'reliability.png'
    chart = figures.reliability(path, *findings.reliability)
    charts.append((chart, 'confidence, and what is kept of such images'))
    text += (
      ' Confidence is the share of images like one that keep their cluster in '
      'other clusterings: by other heads or members, or of images drawn anew. '
      'The curve is of images that did not shape it, and on the line if '
      'confidence is right.'
    )
  return Section('Sizes and confidence', text, charts=charts)


def _reconstructions(findings, folder):
  order = np.argsort(findings.reconstruction_errors, kind='stable')
  strips = []
  for name, rows in (('best', order), ('worst', order[::-1])):
    images = findings.images[rows[:_STRIP]]
    pairs = images, np.asarray(findings.reconstruct(images))
    pairs = np.concatenate([pictures.as_bytes(part) for part in pairs])
    path = pictures.save_image(
      folder / f'reconstructions_{name}.png',
      pictures.sheet(pairs, len(images), gap=1),
    )
    strips.append((path, f'{name}: images above, reconstructions below'))
  return Section(
    'Reconstructions',
    'The images that the network reconstructs with the smallest and with the '
    'largest error.',
    strips=strips,
  )


def _agreement(findings, folder):
  purities = {s: own['cluster_purity'] for s, own in findings.scores.items()}
  chart = figures.purities(folder / 'purity.png', purities)
  charts = [(chart, 'purity of each cluster')]
  if findings.classes is not None:
    chart = figures.confusion(
      folder / 'confusion.png',
      findings.classes,
      findings.labels,
      len(findings.centers),
      findings.class_names,
    )
    charts.append((chart, 'counts of classes by clusters'))
  return Section(
    'Clusters and classes',
    'The share of the commonest class in each cluster, and the number of '
    'images by class and cluster; pairs matched one to one are on the '
    'diagonal.',
    charts=charts,
  )


def _cluster_card(findings, cluster, folder):
  """Returns a cluster's number, its size, its commonest classes as text, its
  center as a picture, and strips of its members."""
  members = np.flatnonzero(findings.labels == cluster)
  outlier_score = findings.outlier_score[members]
  orders = {
    'typical': outlier_score,
    'uncertain': findings.confidence[members],
    'misfit': -outlier_score,
  }
  strips = []
  for name, order in orders.items():
    rows = members[np.argsort(order, kind='stable')[:_STRIP]]
    if rows.size:
      path = pictures.save_image(
        folder / f'cluster_{cluster}_{name}.png',
        pictures.sheet(findings.images[rows], _STRIP, gap=1),
      )
      strips.append((path, f'{name} members of cluster {cluster}'))
  return {
    'number': cluster,
    'name': _names_of(findings)[cluster],
    'size': len(members),
    'share': len(members) / len(findings.labels),
    'classes': _commonest_classes(findings, members),
    'center': pictures.save_image(
      folder / f'cluster_{cluster}_center.png', findings.centers[cluster]
    ),
    'strips': strips,
  }


def _names_of(findings):
  numbers = [str(k) for k in range(len(findings.centers))]
  return list(findings.cluster_names) or numbers


def _commonest_classes(findings, members):
  if findings.classes is None or not members.size:
    return ''
  shares = np.bincount(findings.classes[members]) / len(members)
  return ', '.join(
    f'{findings.class_names[i]} {shares[i]:.0%}'
    for i in np.argsort(-shares, kind='stable')[:3]
    if shares[i] >= 0.005
  )


def _map(findings, folder):
  """Returns the section whose `map` is the data of the page's script."""
  groups = {'cluster': findings.labels}
  names = {'cluster': _names_of(findings)}
  if findings.classes is not None:
    groups['class'], names['class'] = findings.classes, findings.class_names
  rows, charts = maps.shown(len(findings.images)), []
  for place, points in findings.places.items():
    for name, values in groups.items():
      path = folder / f'map_{place}_{name}.png'
      chart = figures.scatter(path, points[rows], values[rows], names[name])
      charts.append((chart, f'map by {place}, colored by {name}'))
  sheet = folder / 'map_images.webp'
  values = {'confidence': findings.confidence, 'outlier': findings.outlier}
  data = None
  with figures.drawing('the map to play with'):
    data = explorer.build(
      *(sheet, findings.images, findings.places, groups, names, values),
      *(findings.files, findings.split),
    )
    data['sheet'] = _data_uri(sheet)
  titles = ' or '.join(maps.EMBEDDINGS[p].title for p in findings.places)
  return Section(
    'Map',
    f'Images, placed by {titles} of the clustered points. Point at one to see '
    'it; select some with the lasso or the box to list and save them.',
    charts=charts,
    map=data,
  )


def render(
  summary: dict,
  config: dict,
  reference: dict,
  sections: Sequence[Section],
  command: str | None = None,
) -> str:
  """Returns the page as HTML, from what `summary.json` holds, the config, the
  published scores, the sections that `draw` returns, and what was typed."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['data_uri'] = _data_uri
  headline = console.headline(summary, reference)
  seeds = console.seed_scores(summary)
  first = sum(bool(s.clusters or s.map) for s in sections)  # these come first
  members = 'Members' if 'members' in summary else 'Seeds'
  scores = {'Scores': headline, members: seeds, 'Warnings': summary['warnings']}
  environment.policies['json.dumps_kwargs'] = {'sort_keys': False}
  return environment.get_template('page.html').render(
    summary=summary,
    config=json.dumps(config, indent=2),
    headline=headline,
    seeds=seeds,
    sections=sections,
    embeddings=maps.EMBEDDINGS,
    explorer=explorer.script() if any(s.map for s in sections) else '',
    script=(_FOLDER / 'page.js').read_text(),
    first=first,
    titles=[
      *(s.title for s in sections[:first]),
      *(title for title, given in scores.items() if given),
      *(s.title for s in sections[first:]),
      'How it was made',
    ],
    command=command,
  )


def _data_uri(path):
  content = base64.b64encode(path.read_bytes()).decode()
  return f'data:image/{path.suffix[1:]};base64,{content}'

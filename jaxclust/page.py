"""The page that a person reads: one file, with all its pictures inside.

Axes: N images, H height, W width, C channels, D features, K clusters, n images
on the map.
"""

import base64
import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from jaxclust import figures, report
from jaxclust.numerics import InputError

# Pictures of a strip, images on the map, and the longest side of one there.
_STRIP, _MAP_IMAGES, _MAP_SIDE = 10, 1500, 32


class Findings(NamedTuple):
  """What is to be seen of a run, on the host."""

  images: np.ndarray  # [N, H, W, C] uint8, or floats from 0 to 1
  points: Any  # [N, D] what was clustered
  labels: np.ndarray  # [N] clusters
  confidence: np.ndarray  # [N] from 0 to 1, of the cluster
  outlier_score: np.ndarray  # [N] higher is stranger
  centers: np.ndarray  # [K, H, W, C] as images
  classes: np.ndarray | None  # [N] what the labels say
  label_names: Sequence[str]  # of the classes; () to show them as they are
  scores: dict  # of each split that has labels, as metrics.scores gives them
  losses: list[dict]  # of the epochs
  errors: np.ndarray | None  # [N] of the reconstructions
  reconstruct: Callable | None  # images [n, H, W, C] -> their reconstructions
  histories: np.ndarray  # [S, R] scores of R restarts after each step
  score: str  # the name of these


class Section(NamedTuple):
  """A part of the page; a picture is its file and what it shows."""

  title: str
  text: str = ''
  charts: Sequence[tuple[pathlib.Path, str]] = ()
  strips: Sequence[tuple[pathlib.Path, str]] = ()
  clusters: Sequence[dict] = ()  # see `_cluster_card`
  map: dict | None = None  # see `_map`


def check_embedding(embedding: str) -> None:
  """Checks the name of an embedding, and that there is what it needs.

  Raises:
    InputError: if there is not.
  """
  if embedding not in EMBEDDINGS:
    raise InputError(
      f'embedding is {embedding!r}: it must be one of {", ".join(EMBEDDINGS)}'
    )
  if embedding == 'tsne' and importlib.util.find_spec('openTSNE') is None:
    raise InputError(
      "embedding is 'tsne', and there is no openTSNE: "
      "pip install '.[tsne]', or take 'pca'"
    )


def draw(
  findings: Findings, folder: pathlib.Path, embedding: str = 'pca'
) -> list[Section]:
  """Draws all pictures of a run as PNGs into a folder, and orders them; the map
  by principal components, and by another of `EMBEDDINGS` if one is named."""
  names = class_names(findings)
  sections = [
    _training(findings, folder),
    _reconstructions(findings, folder),
    _agreement(findings, names, folder),
    _clusters(findings, names, folder),
    _map(findings, names, folder, embedding),
    _sizes(findings, folder),
    _convergence(findings, folder),
  ]
  return [section for section in sections if section is not None]


def class_names(findings: Findings) -> tuple[np.ndarray, list[str]] | None:
  """The class of each image as a number `[N]` and the names of the classes;
  None without labels."""
  if findings.classes is None:
    return None
  values, numbers = np.unique(findings.classes, return_inverse=True)
  given = findings.label_names
  return numbers, [given[int(v)] if given else str(v) for v in values]


def _training(findings, folder):
  if not findings.losses:
    return None
  path = folder / 'loss.png'
  figures.losses(path, findings.losses)
  return Section(
    'Training',
    'Mean squared error of the reconstructions after each epoch.',
    charts=[(path, 'training and validation loss of each epoch')],
  )


def _reconstructions(findings, folder):
  if findings.reconstruct is None:
    return None
  order = np.argsort(findings.errors, kind='stable')
  strips = []
  for name, rows in (
    ('best', order[:_STRIP]),
    ('worst', order[: -_STRIP - 1 : -1]),
  ):
    rows = np.asarray(rows)
    images = findings.images[rows]
    pairs = [images, np.asarray(findings.reconstruct(images))]
    path = folder / f'reconstructions_{name}.png'
    pairs = np.concatenate([figures.as_bytes(images) for images in pairs])
    figures.save_image(path, figures.sheet(pairs, len(rows), gap=1))
    strips.append((path, f'{name}: images above, reconstructions below'))
  return Section(
    'Reconstructions',
    'What the network makes of its best and of its worst images.',
    strips=strips,
  )


def _agreement(findings, names, folder):
  if not findings.scores:
    return None
  purity, confusion = folder / 'purity.png', folder / 'confusion.png'
  figures.purities(
    purity, {s: f['cluster_purity'] for s, f in findings.scores.items()}
  )
  figures.confusion(
    confusion, names[0], findings.labels, len(findings.centers), names[1]
  )
  return Section(
    'Clusters and classes',
    'The share of the commonest class in each cluster, and how many images of '
    'each class are in which cluster; matched one to one on the diagonal.',
    charts=[
      (purity, 'purity of each cluster'),
      (confusion, 'counts of classes by clusters'),
    ],
  )


def _clusters(findings, names, folder):
  return Section(
    'Clusters',
    'The center of each cluster as an image, and its members: most typical, '
    'least certain, and misfits.',
    clusters=[
      _cluster_card(findings, names, cluster, folder)
      for cluster in range(len(findings.centers))
    ],
  )


def _cluster_card(findings, names, cluster, folder):
  """The number of a cluster, its size, its commonest classes, its center and
  three strips of its members."""
  members = np.flatnonzero(findings.labels == cluster)
  strangeness = findings.outlier_score[members]
  orders = {
    'typical': strangeness,
    'uncertain': findings.confidence[members],
    'misfit': -strangeness,
  }
  strips = []
  for name, order in orders.items():
    rows = members[np.argsort(order, kind='stable')[:_STRIP]]
    if rows.size:
      path = folder / f'cluster_{cluster}_{name}.png'
      figures.save_image(
        path, figures.sheet(findings.images[rows], _STRIP, gap=1)
      )
      strips.append((path, f'{name} members of cluster {cluster}'))
  center = folder / f'cluster_{cluster}_center.png'
  figures.save_image(
    center, figures.as_bytes(np.asarray(findings.centers[cluster]))
  )
  return {
    'number': cluster,
    'size': len(members),
    'classes': _commonest(names, members),
    'center': center,
    'strips': strips,
  }


def _commonest(names, members):
  if names is None or not members.size:
    return ''
  numbers, names = names
  counts = np.bincount(numbers[members], minlength=len(names))
  order = np.argsort(-counts, kind='stable')[:3]
  shares = ((i, counts[i] / len(members)) for i in order)
  return ', '.join(f'{names[i]} {s:.0%}' for i, s in shares if s >= 0.005)


def _map(findings, names, folder, embedding):
  """A section whose `map` holds what the page's script needs."""
  count = min(_MAP_IMAGES, len(findings.images))
  rows = np.linspace(0, len(findings.images) - 1, count).astype(int)
  x = np.asarray(findings.points[rows])
  groups = {'cluster': findings.labels[rows]}
  titles = {'cluster': [str(k) for k in range(len(findings.centers))]}
  if names is not None:
    groups['class'], titles['class'] = names[0][rows], names[1]
  charts, places = [], {}
  for place in dict.fromkeys(('pca', embedding)):
    points = EMBEDDINGS[place](x)
    for name, values in groups.items():
      path = folder / f'map_{place}_{name}.png'
      figures.scatter(path, points, values, titles[name])
      charts.append((path, f'map by {place}, colored by {name}'))
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.maximum(high - low, 1e-30).max()
    places[place] = np.round((points - low) / span, 4).tolist()
  step = -(-max(findings.images.shape[1:3]) // _MAP_SIDE)
  images = findings.images[rows][:, ::step, ::step]
  columns = int(np.ceil(np.sqrt(count)))
  sheet = folder / 'map_images.png'
  figures.save_image(sheet, figures.sheet(images, columns))
  return Section(
    'Map',
    f'{count:,} of the images by the first two principal components of what '
    'was clustered'
    + (', or by t-SNE' if 'tsne' in places else '')
    + '; point at one to see it.',
    charts=charts,
    map={
      'sheet': _data_uri(sheet),
      'columns': columns,
      'height': images.shape[1],
      'width': images.shape[2],
      'places': places,
      'groups': {name: values.tolist() for name, values in groups.items()},
      'names': titles,
      'colors': {
        name: [figures.color(i) for i in range(len(of))]
        for name, of in titles.items()
      },
    },
  )


def principal_components(x: np.ndarray) -> np.ndarray:
  """Coordinates `[n, 2]` of points `[n, D]` along the two directions in which
  they vary most; a direction that is lacking gives 0."""
  x = x - x.mean(axis=0, dtype=np.float64)
  left, values, _ = np.linalg.svd(x, full_matrices=False)
  found = (left * values)[:, :2]
  return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _neighbors(x):
  """Coordinates `[n, 2]` by t-SNE (van der Maaten & Hinton, 2008, Visualizing
  Data using t-SNE), which keeps neighbors together."""
  import openTSNE

  perplexity = min(30.0, (len(x) - 1) / 3)
  fitted = openTSNE.TSNE(perplexity=perplexity, random_state=0, n_jobs=1).fit(x)
  return np.asarray(fitted)


# Ways to lay points out on the map.
EMBEDDINGS = {'pca': principal_components, 'tsne': _neighbors}


def _sizes(findings, folder):
  path = folder / 'sizes.png'
  num_clusters = len(findings.centers)
  figures.sizes(path, findings.labels, findings.confidence, num_clusters)
  return Section(
    'Sizes and confidence',
    'How many images each cluster has, and how sure they are of it.',
    charts=[(path, 'sizes of the clusters, and a histogram of confidence')],
  )


def _convergence(findings, folder):
  if not findings.histories.size:
    return None
  path = folder / 'convergence.png'
  figures.convergence(path, findings.histories, findings.score)
  return Section(
    'Convergence',
    'The score of each restart after each of its steps.',
    charts=[(path, 'score of each restart after each step')],
  )


def render(
  summary: dict,
  config: dict,
  reference: dict,
  sections: Sequence[Section],
  command: str | None = None,
) -> str:
  """The page as HTML.

  Args:
    summary: what the run has found.
    config: what was run.
    reference: published scores, as `report.headline` takes them.
    sections: as `draw` gives them.
    command: what was typed.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['data_uri'] = _data_uri
  environment.policies['json.dumps_kwargs'] = {'sort_keys': False}
  return environment.get_template('page.html').render(
    summary=summary,
    config=json.dumps(config, indent=2),
    headline=report.headline(summary, reference),
    sections=sections,
    command=command,
  )


def _data_uri(path):
  content = base64.b64encode(path.read_bytes()).decode()
  return f'data:image/png;base64,{content}'

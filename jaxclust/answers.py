"""Answers: labels of images, their scores, and the vote of several runs.

Axes: N images, S runs, K clusters.
"""

from collections.abc import Sequence

import jax
import numpy as np

from jaxclust import metrics
from jaxclust.algorithms import consensus
from jaxclust.algorithms.assignment import Assignment
from jaxclust.data import Dataset
from jaxclust.model import Model, ranked


def judge(
  dataset: Dataset, own: Model, points: dict[str, jax.Array]
) -> tuple[Model, dict[str, Assignment], dict]:
  """The model that knows the outlier scores of the first split, the assignment
  of the points of each split, and scores where there are classes."""
  judged = {split: own.judge(x) for split, x in points.items()}
  first = next(iter(judged.values()))
  own = own._replace(outliers=ranked(first.outlier_score))
  labels = {split: found.labels for split, found in judged.items()}
  return own, judged, label_scores(dataset, labels, len(own.centers))


def label_scores(
  dataset: Dataset, labels: dict[str, np.ndarray], num_clusters: int
) -> dict:
  """Scores of each split, in the dataset's order, that has classes."""
  classes = (dataset.labels, dataset.test_labels)
  return {
    split: metrics.scores(own, found, num_clusters)
    for (split, found), own in zip(labels.items(), classes, strict=False)
    if own is not None
  }


def vote(
  dataset: Dataset,
  answers: Sequence[dict[str, np.ndarray]],
  rows: Sequence[dict],
  num_clusters: int,
  criteria: dict[str, list[float | None]] | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
  """The vote of seeds, each of which calls its clusters after those of the seed
  that agrees most with the others.

  Args:
    dataset: that was clustered.
    answers: of each seed the labels `[N]` of each split.
    rows: of each seed its scores.
    num_clusters: K.
    criteria: name -> scores of the seeds, beside their agreement, that need no
      labels; None where a seed has none.

  Returns:
    Scores of the vote, the criteria and, with labels, how the ranks of each
    correlate with those of ACC; and by name the labels `[N]` of the vote and
    `[S, N]` of all seeds.
  """
  labels = {s: np.stack([answer[s] for answer in answers]) for s in answers[0]}
  agreement = consensus.agreement(labels['train'], num_clusters)
  best = int(agreement.argmax())
  names = consensus.align(labels['train'], best, num_clusters)
  votes = {split: consensus.vote(own, names) for split, own in labels.items()}
  scores = label_scores(dataset, votes, num_clusters)
  criteria = {'agreement': np.asarray(agreement).tolist()} | (criteria or {})
  scores['criteria'] = criteria
  if dataset.labels is not None:
    acc = [row['train']['acc'] for row in rows]
    scores['rank_correlation'] = {
      name: consensus.rank_correlation(own, acc)
      for name, own in criteria.items()
    }
  arrays = {f'{split}_vote': own for split, own in votes.items()}
  return scores, arrays | {
    f'{split}_seeds': own for split, own in labels.items()
  }


def arrays_of(
  own: Model, judged: dict[str, Assignment], points: dict[str, jax.Array]
) -> dict[str, np.ndarray]:
  """Labels of each split, and probabilities of the clusters, if there are."""
  arrays = {f'{split}_labels': found.labels for split, found in judged.items()}
  if own.assigner.probabilities is not None:
    for split, x in points.items():
      found = own.assigner.probabilities(own.clusters, x)
      arrays[f'{split}_responsibilities'] = np.asarray(found)
  return arrays

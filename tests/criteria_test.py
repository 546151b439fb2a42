"""Scores of several runs without labels."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from jaxclust import criteria

RNG = np.random.default_rng(0)
SEEN = RNG.integers(0, 3, 300)  # by two runs
ALONE = RNG.integers(0, 3, 300)  # by the third
LABELS = np.stack([SEEN, SEEN, ALONE]).astype(np.int32)


def place(labels, size):
  """Points of any length, in a direction for each label."""
  directions = 3 * np.eye(size)[labels] + RNG.normal(size=(len(labels), size))
  return (directions * RNG.uniform(1, 9, (len(labels), 1))).astype(np.float32)


EMBEDDINGS = place(SEEN, 5), place(SEEN, 4), place(ALONE, 6)


def test_a_silhouette_is_that_of_the_cosines_of_the_others():
  found = criteria.silhouettes(EMBEDDINGS, LABELS, 3)
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in EMBEDDINGS]
  for run, own in enumerate(LABELS):
    others = np.concatenate(unit[:run] + unit[run + 1 :], axis=1)
    assert found[run] == pytest.approx(silhouette_score(others, own), abs=1e-5)


def test_a_probe_finds_what_the_others_see_and_guesses_the_rest():
  seen, again, alone = criteria.probes(EMBEDDINGS, LABELS)
  assert min(seen, again) > 0.9
  assert alone < 0.5


def test_a_probe_is_judged_by_images_that_have_not_taught_it():
  rng = np.random.default_rng(1)
  noise = rng.normal(size=(2, 300, 200))  # more numbers than images to learn
  assert max(criteria.probes(noise, LABELS[:2])) < 0.6


def test_one_cluster_of_all_has_no_score():
  labels = np.stack([SEEN, np.zeros_like(SEEN)]).astype(np.int32)
  for found in (
    criteria.silhouettes(EMBEDDINGS[:2], labels, 3),
    criteria.probes(EMBEDDINGS[:2], labels),
  ):
    assert found[0] is not None
    assert found[1] is None


def test_a_run_that_looks_at_all_pixels_is_steadier_than_one_that_sees_a_few():
  """One tells bright images from dark ones, one by a pixel, one by speckles."""
  rng = np.random.default_rng(0)
  bright = rng.integers(0, 2, (1100, 1, 1, 1)) * 120 + 60
  speckles = (
    rng.integers(-9, 10, (1100, 16, 16, 1))
    * (np.arange(1100) % 2)[:, None, None, None]
  )
  images = np.uint8(bright + speckles)
  runs = [
    SimpleNamespace(predict=lambda x: x.mean(axis=(1, 2, 3)) > 115),
    SimpleNamespace(predict=lambda x: x[:, 7, 7, 0] > 115),
    SimpleNamespace(
      predict=lambda x: np.diff(x * 1.0, axis=1).std((1, 2, 3)) > 4
    ),
  ]
  labels = np.stack([run.predict(images) for run in runs])
  whole, pixel, _ = criteria.steadiness(runs, images, labels, {'blur'})
  assert whole > pixel + 0.01
  assert pixel > 0.6
  whole, pixel, speckled = criteria.steadiness(runs, images, labels, {'erase'})
  assert min(whole, pixel) > 0.99
  assert speckled < 0.9
  none = criteria.steadiness(runs, images, labels, {'erase', 'blur'})
  assert none == [None] * 3

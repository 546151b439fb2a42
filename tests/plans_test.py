"""What a training does, from its options."""

import pytest

from jaxclust import defaults, plans
from jaxclust.errors import InputError

OPTIONS = defaults.TRAINING | {'warmup_epochs': 5.0}


@pytest.mark.parametrize(
  ('num_images', 'changed', 'expected'),
  [
    (60_000, {}, {}),  # 234 batches of 256
    (60_000, {'num_epochs': 2}, {}),
    (15_360, {}, {}),  # 60 batches
    (
      15_359,
      {},
      {'batch_size': 256, 'num_epochs': 51, 'warmup_epochs': 5 * 60 / 59},
    ),
    (300, {}, {'batch_size': 37, 'num_epochs': 375, 'warmup_epochs': 37.5}),
    (
      300,
      {'num_epochs': 2},
      {'batch_size': 37, 'num_epochs': 15, 'warmup_epochs': 37.5},
    ),
    (20, {}, {'batch_size': 8, 'num_epochs': 1500, 'warmup_epochs': 150.0}),
    (5, {}, {'batch_size': 5, 'num_epochs': 3000, 'warmup_epochs': 300.0}),
    (960, {'batch_size': 16}, {}),
    (5, {'min_batches': 0}, {}),
  ],
)
def test_few_images_make_smaller_batches_and_more_epochs(
  num_images, changed, expected
):
  options = OPTIONS | changed
  found = plans.for_few(num_images, options)
  assert found == pytest.approx(expected)
  if found:
    updates = num_images // found['batch_size'] * found['num_epochs']
    assert updates >= options['min_batches'] * options['num_epochs']


def test_options_of_a_run_of_before_stay():
  options = {k: v for k, v in OPTIONS.items() if k != 'min_batches'}
  assert plans.for_few(5, options) == {}


@pytest.mark.parametrize(
  'changed',
  [{'min_batches': -1}, {'batch_size': 0}, {'num_epochs': 0}],
)
def test_counts_out_of_range_are_named(changed):
  ((name, value),) = changed.items()
  with pytest.raises(InputError, match=f'{name} is {value}'):
    plans.for_few(100, OPTIONS | changed)

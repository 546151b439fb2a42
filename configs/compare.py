r"""Finished runs on the same images: how and where they differ.

  python launch.py --config=configs/compare.py \
    --config.runs="('runs/a', 'runs/b')"

Options and scores that differ, agreement, how images move from the clusters of
the first run to those of each other one, and which they are.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('compare', variant)
  del config.seed, config.tensorboard, config.data  # those of the runs
  config.runs = ()  # directories of finished runs
  return config

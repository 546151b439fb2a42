r"""Figures and page of a finished run, drawn again in its directory.

  python launch.py --config=configs/report.py --config.run=runs/...

Trainings and fits are read from the checkpoints of the run, and nothing else of
it changes. Sweeps and benchmarks cannot be drawn again.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('report', variant)
  del config.seed, config.tensorboard, config.data  # the run has its own
  config.run = ''  # the directory of a finished run
  return config

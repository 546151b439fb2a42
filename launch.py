"""Runs one experiment: `python launch.py --config=configs/gmm.py[:variant]`."""

from jaxclust.cli import main, run

__all__ = ['main']

if __name__ == '__main__':
  run()

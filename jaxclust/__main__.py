"""The command line: `python -m jaxclust --config=configs/gmm.py[:variant]`."""

from jaxclust import cli

if __name__ == '__main__':
  cli.run()

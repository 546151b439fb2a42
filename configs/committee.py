r"""The whole pipeline of the flagship: networks with different looks vote.

  python launch.py --config=configs/committee.py
  python launch.py --config=configs/committee.py:digits

Two seeds each of prototypes from images and their edges, from edges alone, and
from images with patterns printed on their views. Networks of one look err
alike, those of several do not. The majority that agrees most votes, then
neighbours in all embeddings agree on clusters. No label is seen. Digits of 8x8
pixels have one look, and six seeds that err differently.

A committee that was stopped goes on where it was. `jaxclust.load` loads all of
its networks as one model.

Takes 45 min, digits 6 min, on two cores.
"""

import pathlib

from jaxclust import defaults

# Name -> config, and what is changed of it.
_LOOKS = {
  'plain': ('prototypes', {'network': {'name': 'strided'}}),
  'edges': ('prototypes', {'network': {'name': 'edges'}}),
  'outlines': ('prototypes', {'network': {'name': 'outlines'}}),
  'patterns': (
    'prototypes',
    {'network': {'name': 'strided'}, 'training': {'pattern': 0.8}},
  ),
}


def get_config(variant: str = 'fashion_mnist'):
  folder = pathlib.Path(__file__).parent
  config = defaults.several('committee', variant, folder, _LOOKS)
  config.num_seeds = 2
  config.data.size = config.runs.edges.data.size  # of all members
  config.members = ('edges', 'outlines', 'patterns')
  config.embedding = 'pca'  # of the map on the page; or 'tsne' beside it
  config.spread = config.runs.edges.spread.to_dict()
  for own in config.runs.values():
    own.data.size = ()
    own.spread.num_neighbors = 0  # the committee does it for all
  if variant == 'digits':
    config.num_seeds = 6
    config.members = ('plain',)
  return config

r"""A finished run at work: which cluster each image of a set belongs to.

  python launch.py --config=configs/predict.py --config.run=runs/... \
    --config.data.name=path/to/images
  python launch.py --config=configs/predict.py:digits --config.run=runs/...

Images of another size than the run's are resized, grey ones are repeated for a
run of colour.
"""

from ml_collections import ConfigDict


def get_config(variant: str = 'fashion_mnist') -> ConfigDict:
  config = ConfigDict()
  config.experiment = 'predict'
  config.run = ''  # the directory of a run of kmeans, ae_kmeans or gmm
  config.data = ConfigDict(
    {'name': variant, 'dir': '', 'raw_dir': '', 'size': ()}
  )
  config.embedding = 'pca'  # of the map on the page; or 'tsne' beside it
  config.export = False  # write model.jaxexport, a program that needs JAX alone
  if variant not in ('fashion_mnist', 'digits'):
    raise ValueError(
      f'the variant is {variant!r}: it must be fashion_mnist or digits'
    )
  return config

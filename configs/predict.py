r"""A finished run at work: which cluster each image of a set belongs to.

  python launch.py --config=configs/predict.py --config.run=runs/... \
    --config.data.name=path/to/images
  python launch.py --config=configs/predict.py:digits --config.run=runs/...

Images of another size than the run's are resized, grey ones are repeated for a
run of colour.
"""

from jaxclust import defaults


def get_config(variant: str = 'fashion_mnist'):
  config = defaults.base('predict', variant)
  del config.seed, config.tensorboard  # nothing is drawn or trained
  config.run = ''  # the directory of a run that has clustered
  config.names = ''  # a file of JSON, as {"0": "shoes"}; '': numbers
  config.embedding = 'pca'  # of the map on the page; or 'tsne' beside it
  config.export = False  # write model.jaxexport, a program that needs JAX alone
  return config

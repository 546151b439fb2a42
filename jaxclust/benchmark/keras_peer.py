"""The autoencoder in Keras on TensorFlow, in a process of its own."""

import concurrent.futures
import multiprocessing
import os

import numpy as np

from jaxclust.benchmark.contest import Task
from jaxclust.benchmark.peers import Training

# The worker's function that trains an epoch, once it has been built.
_train = None


def training(given: Training) -> Task:
  """Epochs of a training."""
  spawn = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(1, spawn, _begin, (given,))

  def run():
    try:
      loss = pool.submit(_train_epoch).result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise RuntimeError(
        'the process of Keras ended: see whether `import keras, tensorflow` '
        'works'
      ) from error
    return lambda: loss

  return Task(run)


def _train_epoch():
  return _train()


def _begin(given):
  """Builds the network in the worker, which prints nothing."""
  global _train
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  import keras

  scale = 255 if given.images.dtype == np.uint8 else 1
  images = given.images.astype(np.float32) / scale
  model = _build(images.shape[1:], given.params, given.num_levels)
  model.compile(_adam(keras)(given.learning_rate, epsilon=1e-8), 'mse')
  options = {'batch_size': given.batch_size, 'verbose': 0, 'shuffle': False}

  def train():
    return model.fit(images, images, **options).history['loss'][0]

  _train = train


def _build(image_shape, params, num_levels):
  """The network of `networks.ConvAutoencoder`, of the layers of Keras."""
  import keras
  from keras import layers

  def conv(x, kernel):
    channels = kernel.shape[-1]
    return layers.Conv2D(channels, 3, padding='same', activation='relu')(x)

  images = x = keras.Input(image_shape)
  sizes = [image_shape[:2]]
  kernels = [kernel for kernel, _ in params]
  for kernel in kernels[:num_levels]:
    x = layers.MaxPooling2D(2, padding='same')(conv(x, kernel))
    sizes.append(x.shape[1:3])
  x = conv(x, kernels[num_levels])
  for kernel, size in zip(
    kernels[num_levels + 1 :], sizes[-2::-1], strict=True
  ):
    x = layers.UpSampling2D(2)(x)
    excess = np.subtract(x.shape[1:3], size).tolist()
    if any(excess):
      x = layers.Cropping2D([(0, more) for more in excess])(x)
    x = conv(x, kernel)
  model = keras.Model(images, x)
  model.set_weights([array for pair in params for array in pair])
  return model


def _adam(keras):
  """Adam with epsilon where the paper's Algorithm 1 has it: after the
  correction of the bias. Keras adds it before, which matters where gradients
  are small."""

  class Adam(keras.optimizers.Adam):
    def update_step(self, gradient, variable, learning_rate):
      epsilon = self.epsilon
      step = keras.ops.cast(self.iterations + 1, variable.dtype)
      correction = 1 - keras.ops.power(self.beta_2, step)
      self.epsilon *= keras.ops.sqrt(correction)
      super().update_step(gradient, variable, learning_rate)
      self.epsilon = epsilon

  return Adam

"""The autoencoder in Keras on TensorFlow; arguments are those of `peers`."""

import os

import numpy as np

from jaxclust.benchmark.contest import Task


def training(images, params, batch_size, learning_rate):
  """Epochs of a training."""
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  import keras

  scale = 255 if images.dtype == np.uint8 else 1
  images = images.astype(np.float32) / scale
  model = _build(keras, images.shape[1:], params)
  model.compile(_adam(keras)(learning_rate, epsilon=1e-8), 'mse')
  options = {'batch_size': batch_size, 'verbose': 0, 'shuffle': False}

  def run():
    losses = model.fit(images, images, **options).history['loss']
    return lambda: losses[0]

  return Task(run)


def _build(keras, image_shape, params):
  """The network of `networks.ConvAutoencoder`, of the layers of Keras."""
  layers, sizes, num_levels = keras.layers, [], len(params) // 2
  images = x = keras.Input(image_shape)
  for i, (_, bias) in enumerate(params):
    if i > num_levels:
      x = layers.UpSampling2D(2)(x)
      height, width = sizes.pop()
      if x.shape[1:3] != (height, width):
        x = x[:, :height, :width]
    x = layers.Conv2D(len(bias), 3, padding='same', activation='relu')(x)
    if i < num_levels:
      sizes.append(x.shape[1:3])
      x = layers.MaxPooling2D(2, padding='same')(x)
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

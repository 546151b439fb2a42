"""The autoencoder in Keras on TensorFlow, in a process of its own.

  python keras_worker.py FILE.npz

The file holds `images` `[N, H, W, C]` in the order to see them;
`kernel_0`, `bias_0` and so on of each convolution, encoder first; `num_levels`,
`batch_size` and `learning_rate`. For each line of the input it trains an epoch
and prints its mean loss. It imports nothing of the package.
"""

import os
import sys

os.environ['KERAS_BACKEND'] = 'tensorflow'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import keras
import numpy as np
from keras import layers, ops


def build(image_shape, params, num_levels):
  """The network of `autoencoder.py`, of the layers that Keras has."""

  def conv(x, kernel):
    return layers.Conv2D(
      kernel.shape[-1], 3, padding='same', activation='relu'
    )(x)

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
    crop = [(0, double - wanted) for double, wanted in zip(
      x.shape[1:3], size, strict=True
    )]  # fmt: skip
    if np.any(crop):
      x = layers.Cropping2D(crop)(x)
    x = conv(x, kernel)
  model = keras.Model(images, x)
  model.set_weights([array for pair in params for array in pair])
  return model


class Adam(keras.optimizers.Adam):
  """Adam with epsilon where the paper's Algorithm 1 has it, behind the bias's
  correction; Keras has it before, which tells where gradients are small."""

  def update_step(self, gradient, variable, learning_rate):
    epsilon = self.epsilon
    step = ops.cast(self.iterations + 1, variable.dtype)
    self.epsilon *= ops.sqrt(1 - ops.power(self.beta_2, step))
    super().update_step(gradient, variable, learning_rate)
    self.epsilon = epsilon


def main(path):
  with np.load(path) as file:
    arrays = dict(file)
  images, num_levels = arrays['images'], int(arrays['num_levels'])
  scale = 255 if images.dtype == np.uint8 else 1
  images = images.astype(np.float32) / scale
  params = [
    (arrays[f'kernel_{i}'], arrays[f'bias_{i}'])
    for i in range(2 * num_levels + 1)
  ]
  model = build(images.shape[1:], params, num_levels)
  adam = Adam(float(arrays['learning_rate']), epsilon=1e-8)
  model.compile(adam, 'mse')
  options = {'batch_size': int(arrays['batch_size']), 'verbose': 0}
  for _ in sys.stdin:
    history = model.fit(images, images, shuffle=False, **options)
    print(history.history['loss'][0], flush=True)


if __name__ == '__main__':
  main(sys.argv[1])

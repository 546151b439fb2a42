"""Clustering of images by learned representation, in JAX."""

from jaxclust import autoencoder, gmm, kmeans, layers, numerics, training

__all__ = ['autoencoder', 'gmm', 'kmeans', 'layers', 'numerics', 'training']

"""Clusters of vectors: k-means, Gaussian mixtures, and the solver of both."""

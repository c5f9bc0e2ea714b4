"""Layers as data, the model that runs them, and where its weights are from."""

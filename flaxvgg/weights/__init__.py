"""Weights: torch's names and layouts, checkpoints, published files, the eight constructors."""

"""Weights of others: readers, the way into a model, and the proof layer by layer."""

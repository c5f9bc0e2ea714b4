"""Weights of others: readers, and the proof layer by layer."""

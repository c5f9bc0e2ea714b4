"""Decoding, recipes, resizing, data sets, batches."""

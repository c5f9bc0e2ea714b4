"""Images: decoding, recipes, resizing, data sets, batches."""

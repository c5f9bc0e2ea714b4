"""Data sets larger than memory: images in, a Zarr store out, on every device, exactly once."""

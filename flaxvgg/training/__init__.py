"""Losses, steps, collapse diagnosis, runs that resume exactly."""

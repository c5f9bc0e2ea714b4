"""Training: losses, the optimiser's step, collapse diagnosis, and runs that resume exactly."""

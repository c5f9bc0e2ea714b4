"""torch's names and layouts, checkpoints, published weights."""

"""Parity and speed on one NVIDIA GPU, against PyTorch on the same card."""

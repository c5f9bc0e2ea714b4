"""Heads on the same convolutions: GAP, score map, fully convolutional; the sample head."""

"""Convolution, linear layer and max pooling: in C on a CPU, XLA's own elsewhere."""

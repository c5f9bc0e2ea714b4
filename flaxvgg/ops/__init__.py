"""What a CPU computes in its own way: convolution, linear layer, pooling."""

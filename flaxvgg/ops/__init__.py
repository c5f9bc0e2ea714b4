"""Operations that a CPU computes in its own way: convolution, linear product, pooling."""

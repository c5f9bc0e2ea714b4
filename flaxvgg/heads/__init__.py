"""GAP, score map, fully convolutional; the sample heads."""

"""Random fits and random programs, against Keras's own `fit`."""

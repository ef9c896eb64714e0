"""The steps of members on TensorFlow: one after another in a program, or stacked."""

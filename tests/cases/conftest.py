"""Cases from public programs: measured on TensorFlow and JAX."""

import keras

# Until torch has compiled programs its steps run eagerly, one after another: what these cases are
# about (tracing, stacks, when a variable is read) is not decided there yet.
collect_ignore_glob = ["*.py"] if keras.backend.backend() == "torch" else []

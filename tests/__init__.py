"""Tests of kerascohost, one run per Keras backend."""

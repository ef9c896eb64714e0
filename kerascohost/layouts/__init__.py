"""Which layout suits: measured times and memory, group factors, data to measure with."""

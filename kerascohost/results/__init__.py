"""Results of training: histories, progress, plans, and their tables and plots."""

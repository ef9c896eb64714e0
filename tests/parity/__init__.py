"""Comparisons of cohorts with separate training."""

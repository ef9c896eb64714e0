"""Deferred fits: calls of `fit` in unchanged programs, collected and trained together."""

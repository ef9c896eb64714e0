"""The steps of members on torch, which run eagerly."""

"""Cohorts: members, the data they take, and whose steps run next."""

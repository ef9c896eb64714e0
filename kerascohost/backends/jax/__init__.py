"""The steps of members on jax: one after another in a program, or stacked."""

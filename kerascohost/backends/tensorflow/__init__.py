"""The steps of members on tensorflow: one after another in a program, or stacked."""

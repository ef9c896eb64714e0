"""Views for the notebook: they find things in the namespace, and ask the core to do the work."""

"""The widget in a real JupyterLab, with a real kernel, in a real browser."""

"""The magics and the widget: they find models and data in a notebook, and call the core."""

"""Showing a dictionary to a model: which layers, what they give, and that nothing stays changed."""

"""Dissections over epochs: the timeline of a run, alerts on it, and runs seen after the fact."""

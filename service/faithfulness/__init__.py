"""Metrics of how faithful explanations are to their model; see `README.md`."""

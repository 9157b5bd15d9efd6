"""Versions that are served: where they come from, what is kept of each, and what a bare name means."""

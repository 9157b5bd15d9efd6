"""Answerable: predictions of deployed models, each with an explanation that can be checked."""

__version__ = "0.4.0"

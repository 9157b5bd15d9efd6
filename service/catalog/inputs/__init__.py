"""Kinds of input: one file a kind."""

"""The engine: see README.md."""

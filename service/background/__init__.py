"""Many rows, and whole exports, behind the requests."""

"""What the service does, each a function that reads from top to bottom."""

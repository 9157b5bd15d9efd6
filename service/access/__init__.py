"""What a caller may ask for, and how much of it."""

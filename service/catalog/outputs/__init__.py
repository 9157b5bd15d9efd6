"""What a model answers: one file for each kind of output."""

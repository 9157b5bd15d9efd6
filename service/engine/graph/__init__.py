"""What a network's graph says."""

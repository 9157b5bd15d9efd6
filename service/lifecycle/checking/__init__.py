"""Whether a model version may be served, and how it differs from another: the commands for a promotion gate."""

"""The worker's side of the engine: the process that owns one device."""

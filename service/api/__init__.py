"""HTTP: parse, authenticate, validate; nothing else. One file a resource."""

"""Quadrature, refinement, error estimates and variance reduction; numpy only, float64 only."""

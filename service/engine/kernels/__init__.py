"""Kernels: computations at one fixed shape on the device."""

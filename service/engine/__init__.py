"""The engine: a pool of workers on the front side; scheduler, device and kernels on the worker side."""

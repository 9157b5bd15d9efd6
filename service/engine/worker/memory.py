"""Memory that ended, by the errors of all who ask for it."""

from __future__ import annotations

import torch

TOLD = ("DefaultCPUAllocator", "alloc_cpu", "std::bad_alloc", "bad allocation", "Failed to allocate memory")
"""What torch's allocator of the CPU, C++ and ONNX Runtime say, as errors of no kind of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: the device's, Python's, numpy's, or one inside torch or ONNX Runtime."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in TOLD)

"""Recognises errors of exhausted memory, whichever library raises them."""

from __future__ import annotations

import torch

MESSAGES = ("DefaultCPUAllocator", "alloc_cpu", "std::bad_alloc", "bad allocation", "Failed to allocate memory")
"""Parts of the messages of torch's CPU allocator, C++ and ONNX Runtime, which have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: the device's, Python's, numpy's, or one inside torch or ONNX Runtime."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in MESSAGES)

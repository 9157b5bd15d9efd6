"""The conditions that determine the last bits of a worker's numbers, and its use of memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from service import __version__
from service.catalog.formats import Format
from service.processes import tuning

LIBRARIES: Mapping[Format, Sequence[str]] = {"transformers": ("transformers",)}


def set_up_torch() -> None:
    """The same bits each time, in full precision; with one thread on the host, where breakpoints are found also when
    gradients are computed on a GPU: how several divide a product changes its last bits."""
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms, but it imports torch's compiler
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(tuning.HOST_THREADS)


def environment_of(device: torch.device) -> dict[str, str]:
    """Everything that must be the same for a replay: versions of libraries, the device, and how it is set up."""
    return {
        "answerable": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own type would have the front import torch to read it
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "scikit-image": _version_of("scikit-image"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda or "none",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": "float32",  # where a version's own environment says nothing else
        "mkl_cbwr": os.environ.get("MKL_CBWR", "default"),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }


def libraries_of(artefact_format: Format) -> dict[str, str]:
    """By name, the versions of what only models of this format are computed with; a replay needs these too."""
    return {package: _version_of(package) for package in LIBRARIES.get(artefact_format, ())}


def used_bytes(device: torch.device) -> int:
    """The memory that the process has taken of its device: CUDA's memory with what the allocator keeps, or resident
    memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """The name of the CPU, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

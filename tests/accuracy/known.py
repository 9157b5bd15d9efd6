"""Truths kept in files, so that a run with another tolerance, method or estimate does not take them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import fx, nn

from service.domain import Floats
from tests.accuracy.truths import Truth


def fingerprint(network: nn.Module) -> str:
    """What tells a network from all others: its layers, what it does with them, and its weights."""
    digest = hashlib.sha256(repr(network).encode())
    digest.update(fx.symbolic_trace(network).code.encode())
    for name, values in network.state_dict().items():
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()


class Known:
    """The truths of one network, in a `folder`; without one they are taken every time."""

    def __init__(self, folder: Path | None, network: str) -> None:
        self._folder = folder
        self._network = network

    def truth(self, kind: str, of: tuple[Floats, ...], target: int, limits: Floats, take: Callable[[], Truth]) -> Truth:
        """The truth of this `kind`, which depends on the arrays `of` and the `target`: as it is known, where it is
        surer than the `limits` [spaces], else as `take` gives it."""
        if self._folder is None:
            return take()
        digest = hashlib.sha256(f"{self._network} {kind} {target}".encode())
        for array in of:
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        path = self._folder / f"{digest.hexdigest()[:40]}.npz"
        if path.exists():
            with np.load(path) as kept:
                truth = Truth(kept["values"], kept["doubts"])
            if (truth.doubts <= limits).all():
                return truth
        truth = take()
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npz")
        np.savez(unfinished, values=truth.values, doubts=truth.doubts)
        unfinished.replace(path)
        return truth

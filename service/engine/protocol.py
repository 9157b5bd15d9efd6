"""The engine: what loads model versions and computes their predictions and explanations.

`Engine` is all that the rest of the service knows of it. `service.engine.client.local_engine` implements it with worker
processes on this machine; an implementation may as well have its workers on many machines, so nothing here assumes
that both sides share a clock or a disk:

- a version is named by the digest of its manifest; only `load` says where its files are;
- a deadline is the seconds that are left when the call is made, and has passed where they are not above zero;
- whoever stops waiting for a call (cancels its task) cancels the work.

Each implementation decides how it is constructed and started. `tests/engine/test_conformance.py` holds every
implementation to what is promised here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.catalog.traits import Traits
from service.domain import (
    Conditions,
    Explanation,
    ModelKey,
    Plan,
    Prediction,
    Priority,
    Timings,
    VersionRef,
)

BaselineOutputs = Mapping[str, Outputs]
"""By digest of the baseline set: by output space, the outputs over its rows and, last, over their mean,
[size + 1, labels]."""


@dataclass(frozen=True)
class Source:
    """Where an engine reads the files of a version: its manifest and what that names in `folder`, and the files of
    baseline sets that are attached later in `baselines`."""

    folder: Path
    baselines: Path


@dataclass(frozen=True)
class Loaded:
    """What is known of a version once it is loaded.

    `parity` is the largest relative difference between twin and artefact, `chunk_seconds` how long the smallest chunk
    takes. `environment` is what decides the last bits of its numbers beyond the engine's own (`Stats.environment`): the
    `dtype` of its rows, and the libraries that only models of its format are computed with.
    """

    key: ModelKey
    baseline_outputs: BaselineOutputs
    calibration: Calibration
    traits: Traits
    parity: float
    chunk_seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChunkReport:
    """One chunk that was computed: `slots` of its `capacity` were filled, by `explanations`, and it took `seconds`.

    An engine is constructed with a function that takes these.
    """

    model: str
    kernel: str
    slots: int
    capacity: int
    explanations: int
    seconds: float


@dataclass(frozen=True)
class Stats:
    """The state of an engine.

    `environment` is what decides the last bits of its numbers, empty until a worker has started. `ready_workers` are
    running and have loaded every version they should have, and `is_complete` says that all are. `queued_points` are
    expected of what is in flight, where that is most; from a limit on, more is refused there. `memory` holds the bytes
    that each running worker uses, by its number: of its GPU, or of main memory.
    """

    environment: Mapping[str, str]
    is_complete: bool
    ready_workers: int
    queued_points: int
    memory: Mapping[int, int]


class Engine(Protocol):
    """Loads versions, and predicts and explains with them.

    Every call that computes raises

    - ModelNotReady, where the version is not loaded;
    - Overloaded, at once, where the engine holds as much work as it may. It judges by `expected_points`, the gradient
      points that a call is expected to cost; a call of more than the limit is taken while nothing else is there;
    - DeadlineExceeded, where the deadline passes before there is any result;
    - ComputationFailed or DeviceOutOfMemory, where this call fails; no other call is affected;
    - WorkerLost, where what computes it ended repeatedly, or the engine is stopping.
    """

    async def explain(
        self,
        version: VersionRef,
        plan: Plan,
        expected_points: int,
        priority: Priority = Priority.INTERACTIVE,
        seconds_left: float | None = None,
    ) -> tuple[Explanation, Timings]:
        """The explanation of `plan`, and where its time went. Where the deadline passes when part of it is known, the
        explanation is of that part, with the reason `deadline`.

        Also raises InvalidRequest, where the plan's baseline set has been detached.
        """
        ...

    async def repeat(
        self, version: VersionRef, plan: Plan, expected_points: int, conditions: Conditions
    ) -> Explanation:
        """The explanation of `plan` once more, bit for bit, under the conditions of an earlier one. In the same
        environment it is equal to that. Raises what `explain` does."""
        ...

    async def predict(
        self, version: VersionRef, row: tuple[float, ...], seconds_left: float | None = None
    ) -> Prediction:
        """The outputs of the deployed artefact at `row` [columns]."""
        ...

    async def load(
        self,
        version: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None = None,
        *,
        beside: bool = False,
    ) -> Loaded:
        """Loads a version on every worker, from files that must be those of its digest.

        `known` are baseline outputs computed earlier, `calibration` an earlier one, both in this environment; what is
        missing is computed. With `beside` the versions that are loaded answer meanwhile, at the usual pace. A version
        that is loaded already is not loaded again, but must be unloaded as often. Raises CatalogError, and then nothing
        has changed.
        """
        ...

    async def attach(self, version: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        """Gives a loaded version a baseline set that is not in its manifest; the outputs over it.

        Plans can name it from then on, also after a worker was replaced. Raises CatalogError.
        """
        ...

    def detach(self, digest: str) -> None:
        """Takes the baseline set of this digest from every version that it was attached to, for good. A set of a
        manifest stays."""
        ...

    def unload(self, version: VersionRef) -> None:
        """Forgets a version, once this was called as often as `load`. What is in flight of it ends normally."""
        ...

    def stats(self) -> Stats:
        """The state of the engine; costs next to nothing."""
        ...

    def stop(self) -> None:
        """Fails what is in flight with WorkerLost, and everything that is asked from now on; returns at once."""
        ...

    async def close(self) -> None:
        """Stops, and ends everything that the engine started. A second call does nothing more."""
        ...

"""What the front and a worker say to each other. Both are this program's own processes, so frames are pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.catalog.manifest import BaselineSet
from service.domain import (
    ChunkShapes,
    Conditions,
    Explanation,
    Floats,
    ModelKey,
    OutputSpace,
    Plan,
    Prediction,
    Priority,
    Timings,
    Traits,
)
from service.errors import AnswerableError

BaselineOutputs = Mapping[str, Mapping[OutputSpace, Floats]]
"""By digest of the set and output space, the outputs over its rows and, last, over their mean: [K + 1, labels]."""


@dataclass(frozen=True)
class Load:
    """Load the version in `folder`.

    `known` holds baseline outputs computed earlier, `shapes` those of an earlier calibration; None: calibrate.
    """

    folder: Path
    known: BaselineOutputs
    shapes: ChunkShapes | None


@dataclass(frozen=True)
class Attach:
    """Give the version in `folder` one more baseline set, whose file is in `place`; `known` as for `Load`."""

    folder: Path
    place: Path
    baseline: BaselineSet
    known: Mapping[OutputSpace, Floats] | None

    @property
    def digest(self) -> str:
        """By which plans name the set."""
        return "sha256:" + self.baseline.sha256


@dataclass(frozen=True)
class Detach:
    """Take the baseline set of this digest from every version that was given it, but not where the manifest has it."""

    digest: str


@dataclass(frozen=True)
class Unload:
    folder: Path


@dataclass(frozen=True)
class Explain:
    """Explain `plan` by the version in `folder`: two may be of one artefact, and differ in their manifests.

    `deadline` is on the monotonic clock, which the processes of one machine share. With `conditions`, as it was
    explained under them.
    """

    task: int
    folder: Path
    plan: Plan
    priority: Priority
    deadline: float | None
    conditions: Conditions | None = None


@dataclass(frozen=True)
class Predict:
    task: int
    folder: Path
    row: tuple[float, ...]
    deadline: float | None


@dataclass(frozen=True)
class Cancel:
    task: int


Request = Load | Attach | Detach | Unload | Explain | Predict | Cancel


@dataclass(frozen=True)
class Ready:
    """The worker listens. `environment` is what decides the last bits of its numbers; a replay must find it equal."""

    environment: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    """The version in `folder` is ready.

    `parity` is the largest relative difference between twin and artefact at load, `chunk_seconds` how long the smallest
    chunk takes, `dtype` the type of the rows.
    """

    folder: Path
    key: ModelKey
    baseline_outputs: BaselineOutputs
    shapes: ChunkShapes
    traits: Traits
    parity: float
    chunk_seconds: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Attached:
    """A version has one more set, with these outputs; or, with `problem`, has not."""

    folder: Path
    digest: str
    outputs: Mapping[OutputSpace, Floats]
    problem: str | None = None


@dataclass(frozen=True)
class LoadFailed:
    folder: Path
    detail: str


@dataclass(frozen=True)
class Done:
    task: int
    result: Explanation | Prediction
    timings: Timings


@dataclass(frozen=True)
class Failed:
    task: int
    error: AnswerableError


Outcome = Done | Failed


@dataclass(frozen=True)
class ChunkReport:
    """One chunk: `units` of its `capacity` were filled, by `explanations`, and it took `seconds`."""

    model: str
    kernel: str
    units: int
    capacity: int
    explanations: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """What happened since the worker's last message."""

    outcomes: list[Outcome]
    chunks: list[ChunkReport]


@dataclass(frozen=True)
class Memory:
    """What the worker holds, in bytes: of its GPU, or of main memory where it has none."""

    held: int


Reply = Ready | Loaded | Attached | LoadFailed | Progress | Memory

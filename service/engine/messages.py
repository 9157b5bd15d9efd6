"""The messages between the front and a worker process, in frames on a socket.

Both are this program's own processes on one machine, so frames are pickled, files are named by their paths, and a
`deadline` is a time on the monotonic clock, which the processes of a machine share. `LocalEngine` makes it of the
seconds left that `Engine` is given: none of this leaves the machine.

The front numbers its requests; an answer has the number of its request, `task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import Conditions, Explanation, Plan, Prediction, Priority, Timings, VersionRef
from service.engine.protocol import BaselineOutputs, ChunkReport, Loaded, Source
from service.errors import AnswerableError


@dataclass(frozen=True)
class Load:
    """Load a version; as `Engine.load`. Answered with VersionLoaded or Refused."""

    task: int
    version: VersionRef
    source: Source
    known: BaselineOutputs
    calibration: Calibration | None


@dataclass(frozen=True)
class Attach:
    """Give a version one more baseline set; as `Engine.attach`. Answered with SetAttached or Refused."""

    task: int
    version: VersionRef
    baseline: BaselineSet
    known: Outputs | None


@dataclass(frozen=True)
class Detach:
    """Take the baseline set of this digest from every version that it was attached to."""

    digest: str


@dataclass(frozen=True)
class Unload:
    """Forget a version; what is in flight of it goes on."""

    version: VersionRef


@dataclass(frozen=True)
class Explain:
    """Explain `plan`; with `conditions`, as it was explained under them. Answered with Done or Failed."""

    task: int
    version: VersionRef
    plan: Plan
    priority: Priority
    deadline: float | None
    conditions: Conditions | None = None


@dataclass(frozen=True)
class Predict:
    """Predict at `row` [columns]. Answered with Done or Failed."""

    task: int
    version: VersionRef
    row: tuple[float, ...]
    deadline: float | None


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this Explain or Predict any more; it gets no answer."""

    task: int


Request = Load | Attach | Detach | Unload | Explain | Predict | Cancel


@dataclass(frozen=True)
class Ready:
    """The worker listens. `environment` is what decides the last bits of its numbers; a replay must find it equal."""

    environment: Mapping[str, str]


@dataclass(frozen=True)
class VersionLoaded:
    task: int
    loaded: Loaded


@dataclass(frozen=True)
class SetAttached:
    """The set is attached, with these outputs over it."""

    task: int
    outputs: Outputs


@dataclass(frozen=True)
class Refused:
    """The files of a Load or an Attach cannot be used; `detail` says why, to whoever asked for it."""

    task: int
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
class Progress:
    """What happened since the worker's last message of this kind."""

    outcomes: list[Outcome]
    chunks: list[ChunkReport]


@dataclass(frozen=True)
class Memory:
    """What the worker uses, in bytes: of its GPU, or of main memory where it has none."""

    used: int


Reply = Ready | VersionLoaded | SetAttached | Refused | Progress | Memory

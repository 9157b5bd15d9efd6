"""A check whose outcome is kept by digest, with its limits and the reference profile.

The service runs it as a program beside itself: `python -m service.lifecycle.checking.assessing DATA FOLDER
[AGAINST]`.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from service.catalog.assessments import ASSESSMENTS, Assessment, Assessments
from service.catalog.manifest import read_manifest
from service.domain import ModelKey
from service.engine.worker.device import best_device
from service.errors import CatalogError
from service.lifecycle.checking.checks import Report, check
from service.lifecycle.checking.limits import ROWS, Limits
from service.lifecycle.checking.tables import findings_body
from service.lifecycle.checking.trial import Trial
from service.processes.tuning import HOST_THREADS

MAX_NICENESS = 19


def assess(
    folder: Path, against: Path | None, limits: Limits, rows: int, seed: int, trial: Trial | None = None
) -> tuple[Report, Assessment | None]:
    """Checks the version in `folder`; `trial` is that version as it was loaded on the best device, if it was already.

    There is no assessment where a manifest cannot be read, or changed during the check: it would belong to no version.
    """
    files = _files(folder), None if against is None else _files(against)
    report = check(folder, against, best_device(), limits, rows, seed, trial)
    own, others = _files(folder), None if against is None else _files(against)
    if own is None or (own, others) != files:
        return report, None
    key, manifest = own
    assessment = Assessment(
        key.name,
        key.version,
        key.digest,
        manifest,
        report.against,
        tuple(report.failed),
        tuple(findings_body(report)),
        asdict(limits),
        report.profile,
        None if others is None else (others[0].digest, others[1]),
    )
    return report, assessment


def _files(folder: Path) -> tuple[ModelKey, str] | None:
    try:
        _, key, manifest = read_manifest(folder)
    except CatalogError:
        return None
    return key, manifest


def main() -> int:
    """Checks as the command without options does. Returns 0 where a verdict was kept."""
    os.nice(MAX_NICENESS)
    torch.set_num_threads(HOST_THREADS)
    data, folder, *against = map(Path, sys.argv[1:])
    with ending_with_whoever_asked(sys.stdin.fileno()):
        _, assessment = assess(folder, against[0] if against else None, Limits(), ROWS, seed=0)
        if assessment is None:
            return 1
        Assessments(data / ASSESSMENTS).keep(assessment)
    return 0


@contextmanager
def ending_with_whoever_asked(descriptor: int) -> Iterator[None]:
    """Ends this process once the other end of `descriptor` is closed, while the block runs.

    The thread that watches it has ended by then: one that still held standard input when the interpreter ends would
    make it abort.
    """
    reader, writer = os.pipe()

    def watch() -> None:
        ready, _, _ = select.select([descriptor, reader], [], [])  # nothing is written there; it closes at the end
        if reader not in ready:
            os._exit(1)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        os.close(writer)
        watching.join()
        os.close(reader)


if __name__ == "__main__":
    sys.exit(main())

"""A check whose outcome is kept: by digest, with the limits it was held against, and the reference profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from service.catalog.assessments import Assessment
from service.catalog.manifest import read_manifest
from service.checking.checks import Report, check
from service.checking.limits import Limits
from service.checking.tables import findings_body
from service.engine.device import best_device
from service.errors import CatalogError


def assess(
    folder: Path, against: Path | None, limits: Limits, rows: int, seed: int
) -> tuple[Report, Assessment | None]:
    """Checks the version in `folder`; no assessment where the manifest cannot be read, since it is of nothing then."""
    report = check(folder, against, best_device(), limits, rows, seed)
    try:
        _, key, manifest = read_manifest(folder)
    except CatalogError:
        return report, None
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
    )
    return report, assessment

"""Principal reasons: what moved an output towards the adverse label, named as the manifest names it.

What has the same reason code is one reason, and its contributions are summed: so a manifest declares what moves
together (two incomes, say). A reason counts where the sum is adverse; one whose members cancel does not. The strongest
comes first, and of equally strong ones the one whose feature stands first in the manifest. What has no reason text
takes its place all the same, under its title and without a code: leaving it out would tell of weaker factors as if they
had been the principal ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from service.catalog.manifest import Manifest, Reason, TabularInputs
from service.catalog.tables import Unit
from service.domain import Explanation

MOST_REASONS = 4


@dataclass(slots=True)
class _Candidate:
    """A reason in the making: its features with what each moved the output by, towards the adverse label."""

    title: str
    reason: Reason | None
    parts: list[tuple[float, str]] = field(default_factory=list)

    @property
    def contribution(self) -> float:
        return math.fsum(value for value, _ in self.parts)

    def told(self) -> dict[str, Any]:
        """As the reply has it; `features` where there are several, the strongest first."""
        ranked = [name for _, name in sorted(self.parts, key=lambda part: -part[0])]
        said: dict[str, Any] = {"feature": ranked[0]}
        if len(ranked) > 1:
            said["features"] = ranked
        if self.reason is not None:
            said["code"] = self.reason.code
        return {**said, "text": self.title if self.reason is None else self.reason.text} | {
            "contribution": self.contribution
        }


def principal_reasons(manifest: Manifest, explanation: Explanation) -> list[dict[str, Any]] | None:
    """The reasons, the strongest first, `MOST_REASONS` at most.

    None when the manifest names no adverse label or no reason texts, or the explained output says nothing of it.
    """
    outputs, inputs = manifest.outputs, manifest.inputs
    if outputs.adverse is None or not isinstance(inputs, TabularInputs) or explanation.attributions is None:
        return None
    if not any(unit.reason for unit in inputs.units):
        return None
    adverse = outputs.labels.index(outputs.adverse)
    if explanation.target != adverse and len(outputs.labels) != 2:
        return None
    sign = 1 if explanation.target == adverse else -1
    candidates: dict[str, _Candidate] = {}
    for value, unit in zip(explanation.attributions, inputs.units, strict=True):
        candidate = candidates.setdefault(_key(unit), _Candidate(unit.title, unit.reason))
        candidate.parts.append((sign * value, unit.name))
    adverse_ones = [candidate for candidate in candidates.values() if candidate.contribution > 0]
    adverse_ones.sort(key=lambda candidate: -candidate.contribution)  # stable: of equals, the manifest's first
    return [candidate.told() for candidate in adverse_ones[:MOST_REASONS]]


def _key(unit: Unit) -> str:
    return f"feature {unit.name}" if unit.reason is None else f"code {unit.reason.code}"


def texts_digest(manifest: Manifest) -> str:
    """The version of the reason texts: the digest of every feature's title, code and text, in order."""
    inputs = manifest.inputs
    return _digest(inputs.units) if isinstance(inputs, TabularInputs) else _digest(())


@lru_cache(maxsize=64)
def _digest(units: Sequence[Unit]) -> str:
    named = [(u.name, u.title, u.reason and u.reason.code, u.reason and u.reason.text) for u in units]
    return "sha256:" + hashlib.sha256(orjson.dumps(named)).hexdigest()

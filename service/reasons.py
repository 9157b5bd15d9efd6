"""Principal reasons: what moved an output towards the adverse label, named as the manifest names it.

A reason whose sign the error leaves open is none. Reasons beside each other whose order it leaves open say so (`tied`).
The error is the numerical one and, of expected gradients, that the baseline set is a sample: two standard errors.

What has the same reason code is one reason, and its contributions are summed: so a manifest declares what moves
together (two incomes, say). A reason counts where the sum is adverse; one whose members cancel does not. The strongest
comes first, and of equally strong ones the one whose feature stands first in the manifest. What has no reason text
takes its place all the same, under its title and without a code: leaving it out would tell of weaker factors as if they
had been the principal ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from service.catalog.manifest import Manifest, TabularInputs
from service.catalog.tables import ReasonGroup
from service.domain import Explanation

MOST_REASONS = 4
STANDARD_ERRORS = 2.0


def principal_reasons(manifest: Manifest, explanation: Explanation) -> list[dict[str, Any]] | None:
    """The reasons, the strongest first, `MOST_REASONS` at most.

    None when the manifest names no adverse label or no reason texts, or the explained output says nothing of it.
    """
    outputs, inputs = manifest.outputs, manifest.inputs
    if outputs.adverse is None or not isinstance(inputs, TabularInputs) or explanation.attributions is None:
        return None
    if not any(group.reason for group in inputs.reason_groups):
        return None
    adverse = outputs.labels.index(outputs.adverse)
    if explanation.target != adverse and len(outputs.labels) != 2:
        return None
    sign = 1 if explanation.target == adverse else -1
    moved = [sign * value for value in explanation.attributions]
    sums = [
        moved[group.places[0]] if len(group.places) == 1 else math.fsum(moved[place] for place in group.places)
        for group in inputs.reason_groups
    ]
    nothing = (0.0,) * len(moved)
    numerical, sampled = explanation.attribution_errors or nothing, explanation.standard_error or nothing
    errors = [
        math.fsum(numerical[place] + STANDARD_ERRORS * sampled[place] for place in group.places)
        for group in inputs.reason_groups
    ]
    adverse_ones = [at for at, contribution in enumerate(sums) if contribution > errors[at]]
    adverse_ones.sort(key=sums.__getitem__, reverse=True)  # stable: of equals, the manifest's first
    reasons = [_told(inputs, inputs.reason_groups[at], moved, sums[at]) for at in adverse_ones[:MOST_REASONS]]
    for place, (at, behind) in enumerate(pairwise(adverse_ones)):
        if sums[at] - sums[behind] <= errors[at] + errors[behind]:
            for reason in reasons[place : place + 2]:
                reason["tied"] = True
    return reasons


def _told(inputs: TabularInputs, group: ReasonGroup, moved: Sequence[float], contribution: float) -> dict[str, Any]:
    """A reason as the reply has it; `features` where there are several, the strongest first."""
    ranked = [inputs.unit_names[place] for place in sorted(group.places, key=moved.__getitem__, reverse=True)]
    said: dict[str, Any] = {"feature": ranked[0]}
    if len(ranked) > 1:
        said["features"] = ranked
    if group.reason is not None:
        said["code"] = group.reason.code
    return {**said, "text": group.title if group.reason is None else group.reason.text, "contribution": contribution}


def texts_digest(manifest: Manifest) -> str | None:
    """The version of the reason texts; None of what is no table."""
    return manifest.inputs.reason_texts if isinstance(manifest.inputs, TabularInputs) else None

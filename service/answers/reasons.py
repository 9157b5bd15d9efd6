"""Principal reasons: what moved an output towards what is adverse (a label, or values beyond a bound), named as the
manifest names it.

A reason whose sign the numerical error leaves open is none. Reasons beside each other whose order it leaves open say so
(`tied`).

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

from service.answers.items import ReasonItem
from service.catalog.inputs.features import ReasonGroup
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import Manifest
from service.domain import Explanation

MOST_REASONS = 4


def principal_reasons(manifest: Manifest, explanation: Explanation) -> tuple[ReasonItem, ...] | None:
    """The reasons, the strongest first, `MOST_REASONS` at most.

    None when the manifest names nothing adverse or no reason texts, or the explained output says nothing of it.
    """
    outputs, inputs = manifest.outputs, manifest.inputs
    sign = outputs.adverse_sign(explanation.target)
    if sign is None or explanation.attributions is None:
        return None
    if not any(group.reason for group in inputs.reason_groups):
        return None
    moved = [sign * value for value in explanation.attributions]
    sums = [
        moved[group.places[0]] if len(group.places) == 1 else math.fsum(moved[place] for place in group.places)
        for group in inputs.reason_groups
    ]
    known = explanation.attribution_errors or (0.0,) * len(moved)
    errors = [math.fsum(known[place] for place in group.places) for group in inputs.reason_groups]
    adverse_ones = [at for at, contribution in enumerate(sums) if contribution > errors[at]]
    adverse_ones.sort(key=sums.__getitem__, reverse=True)  # stable: of equals, the manifest's first
    tied = {
        one
        for place, (at, behind) in enumerate(pairwise(adverse_ones))
        if sums[at] - sums[behind] <= errors[at] + errors[behind]
        for one in (place, place + 1)
    }
    return tuple(
        _reason(inputs, inputs.reason_groups[at], moved, sums[at], is_tied=place in tied)
        for place, at in enumerate(adverse_ones[:MOST_REASONS])
    )


def why_no_reasons(manifest: Manifest, target: str | None, *, has_attributions: bool) -> str:
    """What an explanation of the `target` lacks for which `principal_reasons` found none."""
    outputs = manifest.outputs
    if not has_attributions:
        return "it has no attributions, which its method does not give or which could not be computed"
    if outputs.adverse is None:
        return f"its model names no adverse {outputs.noun}"
    if not any(group.reason for group in manifest.inputs.reason_groups):
        return "its model has no reason texts"
    return f"its target, {target}, does not tell of the adverse {outputs.noun}"


def _reason(
    inputs: Inputs, group: ReasonGroup, moved: Sequence[float], contribution: float, *, is_tied: bool
) -> ReasonItem:
    """A reason as it is answered; `features` where there are several, the strongest first."""
    ranked = tuple(inputs.unit_names[place] for place in sorted(group.places, key=moved.__getitem__, reverse=True))
    return ReasonItem(
        feature=ranked[0],
        features=ranked if len(ranked) > 1 else None,
        code=None if group.reason is None else group.reason.code,
        text=group.title if group.reason is None else group.reason.text,
        contribution=contribution,
        tied=True if is_tied else None,
    )


def texts_digest(manifest: Manifest) -> str | None:
    """The version of the reason texts; None where there can be none."""
    return manifest.inputs.reason_texts

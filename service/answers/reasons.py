"""Principal reasons: what contributions an output towards the adverse label, or towards values beyond the bound, in the
manifest's words.

A contribution whose sign is uncertain within the numerical error is no reason. Neighbouring reasons whose order is
uncertain within it are marked as `tied`.

Features with the same reason code are one reason, and their contributions are summed: so a manifest declares what
belongs together (two incomes, say). It is a reason if the sum is adverse, not if its members cancel. The strongest
comes first, and of equally strong ones the one whose feature comes first in the manifest. A feature without a reason
text is listed all the same, by its title and without a code: if it were left out, weaker factors would seem to be the
principal ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from service.answers.items import ReasonItem
from service.catalog.inputs.features import ReasonGroup
from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import Manifest
from service.catalog.outputs.kind import OutputKind
from service.domain import Explanation

MAX_REASONS = 4


def principal_reasons(manifest: Manifest, explanation: Explanation) -> tuple[ReasonItem, ...] | None:
    """The reasons, the strongest first, `MAX_REASONS` at most.

    None if the manifest names nothing adverse, or no reason texts, or if the explained output is not about it.
    """
    inputs = manifest.inputs
    outputs: OutputKind = manifest.outputs
    sign = outputs.adverse_sign(explanation.target)
    if sign is None or explanation.attributions is None:
        return None
    if not any(group.reason for group in inputs.reason_groups):
        return None
    contributions = explanation.attributions if sign > 0 else [-value for value in explanation.attributions]
    groups, known = inputs.reason_groups, explanation.attribution_errors
    sums = _sums(contributions, groups)
    errors = [0.0] * len(sums) if known is None else _sums(known, groups)
    adverse = [at for at, contribution in enumerate(sums) if contribution > 0 and contribution > errors[at]]
    adverse.sort(key=sums.__getitem__, reverse=True)  # stable: of equals, the manifest's first
    tied = {
        rank
        for place, (at, weaker) in enumerate(pairwise(adverse[: MAX_REASONS + 1]))
        if sums[at] - sums[weaker] <= errors[at] + errors[weaker]
        for rank in (place, place + 1)
    }
    return tuple(
        _reason(inputs, groups[at], contributions, sums[at], is_tied=place in tied)
        for place, at in enumerate(adverse[:MAX_REASONS])
    )


def _sums(values: Sequence[float], groups: Sequence[ReasonGroup]) -> list[float]:
    """Over each of the groups; most have one member, which needs no adding up."""
    return [
        values[group.places[0]] if len(group.places) == 1 else math.fsum(values[place] for place in group.places)
        for group in groups
    ]


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
    inputs: Inputs, group: ReasonGroup, contributions: Sequence[float], contribution: float, *, is_tied: bool
) -> ReasonItem:
    """A reason as it is answered; `features` where there are several, the strongest first."""
    names, places = inputs.component_names, group.places
    if len(places) > 1:
        places = tuple(sorted(places, key=contributions.__getitem__, reverse=True))
    return ReasonItem(
        feature=names[places[0]],
        features=tuple(names[place] for place in places) if len(places) > 1 else None,
        code=None if group.reason is None else group.reason.code,
        text=group.title if group.reason is None else group.reason.text,
        contribution=contribution,
        tied=True if is_tied else None,
    )


def texts_digest(manifest: Manifest) -> str | None:
    """The version of the reason texts; None where there can be none."""
    return manifest.inputs.reason_texts

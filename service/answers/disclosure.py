"""What of an explanation a key is shown: its policy, applied to replies and to stored records alike.

A gradient explanation gives away the model: one integrated-gradients query of a linear model holds all its weights
(Milli, Schmidt, Dragan and Hardt, "Model reconstruction from model explanations", 2019). A policy keeps values back and
rounds those that it shows, relative to the largest: a caller who could choose inputs would make any absolute rounding
small. What is left still tells something with every query; quotas bound how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.access.permissions import Policy

BY_UNIT = ("attributions", "standard_error", "attribution_errors")
"""Values by feature, pixel or token."""
SMALLEST_STEP = 1e-250
"""Any float32 counted in such steps is far from overflow; values so small that their grid were finer are 0."""
OUTPUTS = ("output", "baseline_output")
ERRORS = ("completeness_error", "attribution_error")


def limited_prediction(prediction: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """A `predictions` item as the policy lets it be seen."""
    shown = dict(prediction)
    step = _step_of(_outputs_of(prediction), policy)
    if "outputs" in shown:
        shown["outputs"] = [_nearest(value, step) for value in shown["outputs"]] if policy.outputs else []
    if "values" in shown:
        values = shown["values"].items() if policy.outputs else ()
        shown["values"] = {name: _nearest(value, step) for name, value in values}
    return shown


def _outputs_of(prediction: Mapping[str, Any]) -> list[float]:
    return [*prediction.get("outputs", ()), *prediction.get("values", {}).values()]


def limited(
    explanation: Mapping[str, Any], policy: Policy, prediction: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An `explanations` item, or a record of one, as the policy lets it be seen; it then says so in `disclosure`.

    `prediction` is the item's, which a record holds. All outputs are on one grid: rounded for itself, a small one would
    tell a logit, however extreme.
    """
    if not policy.limits_values:
        return dict(explanation)
    shown = dict(explanation)
    noise = shown.get("noise") if isinstance(shown.get("noise"), Mapping) else None
    answered = _outputs_of(prediction or shown.get("prediction") or {})
    grid = _step_of([*answered, *(shown.get(name) for name in OUTPUTS), noise and noise.get("output")], policy)
    if "prediction" in shown:
        shown["prediction"] = limited_prediction(shown["prediction"], policy)
    if "attributions" in shown:
        _limit_values(shown, policy)
    for name in OUTPUTS:
        if name in shown and not policy.outputs:
            del shown[name]
        elif shown.get(name) is not None:
            shown[name] = _nearest(shown[name], grid)
    for name in ERRORS:
        if shown.get(name) is not None and policy.digits is not None:
            shown[name] = _rounded(shown[name], policy.digits)
    if noise is not None and noise.get("output") is not None:
        shown["noise"] = {**noise, "output": _nearest(noise["output"], grid) if policy.outputs else None}
    shown["disclosure"] = {name: value for name, value in policy.written().items() if name != "methods"}
    return shown


def _limit_values(shown: dict[str, Any], policy: Policy) -> None:
    values = _by_unit(shown["attributions"])
    kept = set(range(len(values)))
    if policy.top is not None:
        kept = set(sorted(kept, key=lambda at: (-abs(values[at]), at))[: policy.top])
    step = _step_of(values, policy)
    for name in BY_UNIT:
        if name in shown:
            shown[name] = _limited_units(shown[name], kept, step)
    for name in ("interactions", "groups"):  # of groups of one, the values of everything
        if policy.top is not None:
            shown.pop(name, None)
        elif name in shown and step is not None:
            shown[name] = _on_grid(shown[name], step)
    if "reasons" in shown:
        shown["reasons"] = [
            {**reason, "contribution": _nearest(reason["contribution"], step)}
            for reason in shown["reasons"][: policy.top]
        ]


def _by_unit(values: Any) -> list[float]:
    """The values of an explanation, whatever it explains, in their order."""
    if isinstance(values, Mapping):
        return list(values["values"] if "shape" in values else values.values())
    return [one["attribution"] for one in values]


def _limited_units(values: Any, kept: set[int], step: float | None) -> Any:
    """Those values that are kept. A pixel cannot be left out: one that is not kept is 0."""
    if not isinstance(values, Mapping):
        return [
            {**one, "attribution": _nearest(one["attribution"], step)} for at, one in enumerate(values) if at in kept
        ]
    if "shape" in values:
        pixels = [_nearest(value, step) if at in kept else 0.0 for at, value in enumerate(values["values"])]
        return {"shape": values["shape"], "values": pixels}
    return {name: _nearest(value, step) for at, (name, value) in enumerate(values.items()) if at in kept}


def _on_grid(value: Any, step: float) -> Any:
    """All fractions in it, on the grid; whole numbers are numbers of features."""
    if isinstance(value, Mapping):
        return {name: _on_grid(one, step) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_on_grid(one, step) for one in value]
    return _nearest(value, step) if isinstance(value, float) else value


def _step_of(values: Iterable[float | None], policy: Policy) -> float | None:
    """The grid on which the largest value has as many significant digits as the policy shows; None shows all."""
    if policy.digits is None:
        return None
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if not largest:
        return 1.0
    return max(10.0 ** (math.floor(math.log10(largest)) - policy.digits + 1), SMALLEST_STEP)


def _nearest(value: float, step: float | None) -> float:
    if step is None:
        return value
    return float(f"{round(value / step) * step:.15g}")  # without the digits that the multiplication adds


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")

"""How attributions are shown: by feature, by pixel, or by token, with its place in the text or file that was sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from service.catalog.inputs.sequences import Spans
from service.catalog.manifest import ImageInputs, Manifest, TabularInputs, TokenInputs
from service.domain import Plan


def shown_values(
    manifest: Manifest,
    plan: Plan,
    shape: tuple[int, ...],
    values: Sequence[float],
    spans: Spans | None,
    *,
    has_channels: bool,
) -> Any:
    """Values as the reply has them: by feature; of an image summed over its channels, and by channel too; by token."""
    match manifest.inputs:
        case TabularInputs():
            return dict(zip(manifest.inputs.unit_names, values, strict=True))
        case ImageInputs():
            height, width = shape[-2:]
            pixels = height * width
            channels = [values[at : at + pixels] for at in range(0, len(values), pixels)]
            whole = {"shape": [height, width], "values": channels[0] if len(channels) == 1 else _sum_of(channels)}
            if not has_channels:
                return whole
            rows = range(0, pixels, width)
            return {**whole, "channels": [[channel[at : at + width] for at in rows] for channel in channels]}
        case TokenInputs():
            return _by_token(values, plan.input, spans)


def _by_token(values: Sequence[float], row: Sequence[float], spans: Spans | None) -> list[dict[str, Any]]:
    """The values of tokens: of a text or a file those that are no padding, with their places in it."""
    if spans is None:
        return [{"token": int(token), "attribution": value} for token, value in zip(row, values, strict=True)]
    places = zip(spans.positions, spans.tokens, spans.starts, spans.ends, strict=True)
    return [
        {"token": token, "start": start, "end": end, "attribution": values[position]}
        for position, token, start, end in places
    ]


def _sum_of(channels: Sequence[Sequence[float]]) -> list[float]:
    """The sum over the channels, pixel by pixel."""
    return [math.fsum(values) for values in zip(*channels, strict=True)]

"""What a version must reach before it is promoted."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 128
"""The usual number of rows in the sample."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the checks, which are options of the command: shares of rows, and rank correlations."""

    least_converged: float = 1.0
    most_flagged: float = 0.25
    least_stability: float = 0.7
    least_correlation: float = 0.8
    most_flipped: float = 0.05

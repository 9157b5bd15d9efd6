"""What a version must reach before it is promoted."""

from __future__ import annotations

from dataclasses import dataclass, field

ROWS = 128
"""In the sample, where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the checks, which are options of the command."""

    least_converged: float = field(default=1.0, metadata={"help": "share of rows explained within the tolerance"})
    most_flagged: float = field(
        default=0.25, metadata={"help": "share of rows that the protected features' rule flags"}
    )
    least_stability: float = field(default=0.7, metadata={"help": "rank correlation under other baselines"})
    least_correlation: float = field(default=0.8, metadata={"help": "rank correlation with the earlier version"})
    most_flipped: float = field(default=0.05, metadata={"help": "share of rows predicted otherwise than before"})

"""The parts of an explanation as replies and records have them.

They are typed values: what is computed becomes one, and from then on it is a value of these classes until it is bytes.
Their fields say what they are, for the documentation of the interface, and what a policy shows of them. A field with
the default None is left out where it is None; one without is always there (see `service.access.visibility`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.access.permissions import Policy
from service.access.visibility import ALWAYS, ON_COMPONENT_GRID, OUTPUT_OR_NULL, SHARE, Item


class ModelItem(Item):
    """The version of a model that answered."""

    name: Annotated[str, ALWAYS, Field(description="of the model")]
    version: Annotated[str, ALWAYS, Field(description="of the model")]
    digest: Annotated[str, ALWAYS, Field(description="the SHA-256 of the artefact")]


class RecordedBaseline(Item):
    """The baseline. Of a row that came with the request the digest is in the personal part, where a guess of the row
    cannot be tried against it."""

    name: Annotated[str, ALWAYS, Field(description="of the set, or `inline`, `zeros` or `mask`")]
    version: Annotated[str | None, ALWAYS, Field(description="of the set")] = None
    digest: Annotated[str | None, ALWAYS, Field(description="the SHA-256 of the set's file")] = None
    size: Annotated[int, ALWAYS, Field(description="rows")]


class BaselineItem(RecordedBaseline):
    """What the input is compared with."""

    name: Annotated[str, ALWAYS, Field(description="of the baseline set, or `inline`, `zeros` or `mask`")]
    version: Annotated[str, ALWAYS, Field(description="of the set")]
    digest: Annotated[str, ALWAYS, Field(description="the SHA-256 of the set's file, or of the row")]


class GroupItem(Item):
    """Of `directional_ig`: a group of features."""

    features: Annotated[
        tuple[str, ...] | tuple[int, ...],
        ALWAYS,
        Field(description="its members, by name, or by number where they have none"),
    ]
    dividend: Annotated[float, ON_COMPONENT_GRID, Field(description="the group's own share")]
    value: Annotated[float, ON_COMPONENT_GRID, Field(description="the shares of all groups within it")]


class RecordedNoise(Item):
    """The noisy copies that were asked for."""

    kind: Annotated[
        Literal["smoothgrad", "vargrad"],
        ALWAYS,
        Field(description="`smoothgrad`: the mean; `vargrad`: the variance"),
    ]
    samples: Annotated[int, ALWAYS, Field(description="copies")]
    scale: Annotated[float, ALWAYS, Field(description="standard deviation, as a share of each input's range")]


class NoiseItem(RecordedNoise):
    """The noisy copies that the values are the mean or the variance over."""

    output: Annotated[
        float | None,
        OUTPUT_OR_NULL,
        Field(description="the mean over the copies, which the attributions sum to where the method is complete"),
    ]


class ReasonItem(Item):
    """A principal reason."""

    feature: Annotated[str, ALWAYS, Field(description="the feature, or the strongest of those that share the reason")]
    features: Annotated[
        tuple[str, ...] | None,
        ALWAYS,
        Field(description="all that share it, where there are several, strongest first"),
    ] = None
    code: Annotated[str | None, ALWAYS, Field(description="of the reason text; absent where the manifest has none")] = (
        None
    )
    text: Annotated[str, ALWAYS, Field(description="the reason text, or the feature's title")]
    contribution: Annotated[
        float, ON_COMPONENT_GRID, Field(description="what it moved the output by, towards what is adverse")
    ]
    tied: Annotated[
        bool | None,
        ALWAYS,
        Field(description="there where the numerical error leaves its place in the order open"),
    ] = None


class SegmentItem(Item):
    """A named segment of a text."""

    name: Annotated[str, ALWAYS, Field(description="as the request has it")]
    part: Annotated[int | None, ALWAYS, Field(description="of a pair: 0 for the first text, 1 for the second")] = None
    start: Annotated[int, ALWAYS, Field(description="where it begins, in characters of its text")]
    end: Annotated[int, ALWAYS, Field(description="where it ends")]
    sum: Annotated[float, ON_COMPONENT_GRID, Field(description="of the attributions of the tokens that lie in it")]
    share: Annotated[
        float | None,
        SHARE,
        Field(description="of the sum of all absolute attributions, from 0 to 1; absent where all are zero"),
    ] = None


class StabilityItem(Item):
    """How much of the ranking is left near the input, at the worst that was found where the prediction is the same."""

    rank_correlation: Annotated[
        float | None, ALWAYS, Field(description="the lowest of the absolute attributions with those near by")
    ] = None
    top_share: Annotated[
        float | None, ALWAYS, Field(description="the smallest share of the five largest that are still the largest")
    ] = None
    radius: Annotated[float, ALWAYS, Field(description="how far each number may move, as a share of its range")]
    bound: Annotated[
        float,
        ALWAYS,
        Field(description="how far the label's probability may move; else the output, as a share of its change"),
    ]
    why: Annotated[str | None, ALWAYS, Field(description="why there is no figure, where there is none")] = None


class DisclosureItem(Item):
    """How the key's policy limits what is shown."""

    top: Annotated[int | None, ALWAYS, Field(description="so many of the largest attributions are shown")] = None
    digits: Annotated[
        int | None, ALWAYS, Field(description="values are rounded to so many significant digits of the largest")
    ] = None
    outputs: Annotated[bool | None, ALWAYS, Field(description="false: no outputs are shown")] = None

    @classmethod
    def of(cls, policy: Policy) -> DisclosureItem:
        """That of a policy."""
        return cls(top=policy.top, digits=policy.digits, outputs=None if policy.outputs else False)


class TimingsItem(Item):
    """How long it took, in milliseconds."""

    queue: Annotated[float, ALWAYS, Field(description="waiting for a worker")]
    compute: Annotated[float, ALWAYS, Field(description="computing")]
    total: Annotated[float, ALWAYS, Field(description="from the request to the answer")]

"""The kinds of input. Another kind is a class beside these, and its line in each of the two lists."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from service.catalog.inputs.image import ImageInputs, PixelAttributions
from service.catalog.inputs.prompts import PromptInputs
from service.catalog.inputs.series import SeriesAttributions, SeriesInputs
from service.catalog.inputs.tabular import FeatureAttributions, TabularInputs
from service.catalog.inputs.tokens import TokenAttributions, TokenInputs

DeclaredInputs = Annotated[
    TabularInputs | ImageInputs | TokenInputs | SeriesInputs | PromptInputs, Field(discriminator="kind")
]
"""What a manifest declares, by the word `kind`."""

AnyAttributions = PixelAttributions | SeriesAttributions | TokenAttributions | FeatureAttributions
"""Values by pixel, by step and feature, by token, or by feature."""


@cache
def _adapter() -> TypeAdapter[AnyAttributions]:
    return TypeAdapter(AnyAttributions)


def read_attributions(content: Any) -> AnyAttributions:
    """The values that a reply or a record holds, whatever kind of input they are of. Raises ValueError."""
    return _adapter().validate_python(content)

"""Which kinds of output there are, by what a manifest's `outputs.kind` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from service.catalog.outputs.classes import Classes
from service.catalog.outputs.embedding import Embedding
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.tokens import Tokens
from service.catalog.outputs.values import Values


def _with_kind(declared: Any) -> Any:
    """Manifests that name no kind declare classes."""
    return {"kind": "classes", **declared} if isinstance(declared, Mapping) else declared


Outputs = Annotated[
    Classes | Labels | Values | Embedding | Tokens, Field(discriminator="kind"), BeforeValidator(_with_kind)
]

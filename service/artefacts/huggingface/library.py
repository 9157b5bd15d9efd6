"""The package transformers, imported where it is needed: without a network, without code from anywhere else."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

from service.errors import CatalogError
from service.extras import install


@cache
def transformers() -> Any:
    """The package. Raises CatalogError where it is not installed.

    It imports torchvision where that is installed, for images; torchvision's binary must match torch's build exactly,
    so it is told that there is none, as `service.artefacts.onnx.twins` does for onnx2torch.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    is_imported = "torchvision" in sys.modules
    if not is_imported:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        import transformers as package
        from transformers.models.auto import modeling_auto  # noqa: F401 - while there is no torchvision
    except ImportError as error:
        raise CatalogError(
            f"a Hugging Face folder needs the package transformers: {install('transformers')}"
        ) from error
    finally:
        if not is_imported:
            del sys.modules["torchvision"]
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    return package

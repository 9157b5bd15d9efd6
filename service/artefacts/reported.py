"""A library's message about a model file as part of a sentence: without error codes, source files and line breaks."""

from __future__ import annotations

import re

MAX_LENGTH = 400
NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "
    r"|(?:Exception during \w+: )?/\S+\.(?:cc|h|cpp):\d+ (?:(?!: ).)*?\) (?=\S)"
    r"|Error while deserializing: |==> Context:.*"
)


def reported(error: Exception) -> str:
    """The error's message in one line, or the name of its class where it has none."""
    text = NOISE.sub("", re.sub(r"\s+", " ", str(error))).strip(" .:")
    return f"{text[:MAX_LENGTH]}…" if len(text) > MAX_LENGTH else text or type(error).__name__

"""A library's error about a model file, as a part of a sentence: without codes, source files and newlines."""

from __future__ import annotations

import re

MAX_CHARACTERS = 400
NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "
    r"|(?:Exception during \w+: )?/\S+\.(?:cc|h|cpp):\d+ (?:(?!: ).)*?\) (?=\S)"
    r"|Error while deserializing: |==> Context:.*"
)


def reported(error: Exception) -> str:
    """The error's message in one line, or its class's name where it has none."""
    text = NOISE.sub("", re.sub(r"\s+", " ", str(error))).strip(" .:")
    return f"{text[:MAX_CHARACTERS]}…" if len(text) > MAX_CHARACTERS else text or type(error).__name__

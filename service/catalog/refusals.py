"""Which part of the error about a refused model clients may read."""

from __future__ import annotations

from types import TracebackType

from pydantic import ValidationError

from service.errors import CatalogError
from service.wording import sentence_of_fault

OWN = "service."
MAX_FAULTS = 5


def message_for_clients(error: CatalogError) -> str:
    """The error's sentence without the message of a library, which is for the log.

    torch's advises to load with `weights_only=False`; others hold paths, or pages of a graph. A message of this
    program's own code that was raised again with more stays.
    """
    cause = error.__cause__
    if cause is None or isinstance(cause, CatalogError) or _is_own(cause.__traceback__):
        return str(error)
    sentence, cause_text = str(error), f": {cause}"
    if not sentence.endswith(cause_text):
        return sentence
    sentence = sentence.removesuffix(cause_text)
    if isinstance(cause, ValidationError):  # it names the field, but its own text is of no use to clients
        return f"{sentence}: {fields(cause)}"
    return f"{sentence} ({type(cause).__name__}; the log says more)"


def _is_own(traceback: TracebackType | None) -> bool:
    """Whether it was raised by this program's own code, and not by a library."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__", "")).startswith(OWN)


def fields(error: ValidationError) -> str:
    """What is wrong and where, in one line, without the faulty values: one may be a whole file."""
    faults = error.errors(include_url=False, include_input=False)
    sentences = [
        sentence_of_fault(".".join(map(str, fault["loc"])) or "the file", fault) for fault in faults[:MAX_FAULTS]
    ]
    more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    return "; ".join(sentences) + more

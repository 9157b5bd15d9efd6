"""What of a refused model is for clients to read."""

from __future__ import annotations

from types import TracebackType

from pydantic import ValidationError

from service.errors import CatalogError

OWN = "service."
MAX_FAULTS = 5


def told(error: CatalogError) -> str:
    """The sentence without what a library said: that is for the log, and its advice for whoever called the library.

    torch's says to load with `weights_only=False`; others hold paths, or pages of a graph. What this program's own code
    said, and then raised again with more, stays.
    """
    cause = error.__cause__
    if cause is None or isinstance(cause, CatalogError) or _is_own(cause.__traceback__):
        return str(error)
    sentence, said = str(error), f": {cause}"
    if not sentence.endswith(said):
        return sentence
    sentence = sentence.removesuffix(said)
    if isinstance(cause, ValidationError):  # it names the field, and says nothing of itself
        return f"{sentence}: {fields(cause)}"
    return f"{sentence} ({type(cause).__name__}; the log says more)"


def _is_own(traceback: TracebackType | None) -> bool:
    """Whether it was raised here, and not in a library."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__", "")).startswith(OWN)


def fields(error: ValidationError) -> str:
    """What is wrong and where, in one line. What stands there is not repeated: it may be a whole file."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in faults[:MAX_FAULTS]]
    more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    return "; ".join(said) + more

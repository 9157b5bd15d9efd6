"""Reads the instances of a request into the model's input rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from service.catalog.inputs.kind import Row
from service.catalog.manifest import Manifest
from service.catalog.nearest import Searches
from service.errors import MAX_FAULTS, InvalidRequest
from service.wording import others_listed


def read_instance(manifest: Manifest, instance: object, folder: Path | None = None) -> tuple[float, ...]:
    """The values of the model's input row for one instance; see `Inputs.read`. Raises InvalidRequest."""
    return manifest.inputs.read(instance, folder).values


def read_instances(
    manifest: Manifest,
    instances: Sequence[object],
    folder: Path | None = None,
    *,
    called: str = "instance",
    pointer: str = "/instances",
) -> Iterator[Row]:
    """The rows of a list of instances, up to the first that is wrong; the version's files are in `folder`.

    At the end raises InvalidRequest with the faults of all instances that are wrong, `MAX_FAULTS` at most. The list is
    at `pointer` in the body; messages call each instance `called` and its number.
    """
    refusals: list[InvalidRequest] = []
    searches = Searches()
    count = 0
    for number, instance in enumerate(instances):
        try:
            read = manifest.inputs.read(instance, folder, searches)
        except InvalidRequest as error:
            named = f"{called} {number}" if called else ""
            refusals.append(error.under(f"{pointer}/{number}", named))
            count += len(refusals[-1].faults)
            if count >= MAX_FAULTS:
                break
        else:
            if not refusals:
                yield read
    if not refusals:
        return
    others = count - len(refusals[0].faults)
    raise InvalidRequest(
        f"{refusals[0]}{others_listed(others)}",
        *[fault for refusal in refusals for fault in refusal.faults][:MAX_FAULTS],
    )

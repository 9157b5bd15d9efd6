"""Removes rows from baseline sets, and with them the outputs that were computed over them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np

from service.catalog.baseline_outputs import OUTPUTS, KeptOutputs
from service.catalog.baselines import BASELINES, KeptSet, KeptSets
from service.errors import CatalogError

LOG = logging.getLogger("answerable.catalog")


def forget_rows(data: Path, tokens: Collection[str]) -> None:
    """Removes the rows of these tokens from all sets in the data folder. Raises OSError.

    It also completes earlier removals that were interrupted.
    """
    sets = KeptSets(data / BASELINES)
    erased = frozenset(tokens)
    lost: set[str] = set()
    if not sets.models:
        return
    with sets.alone():
        for model in sets.models:
            for kept_set in sets.of(model):
                if not erased.isdisjoint(kept_set.subjects):
                    _remove_rows(sets, kept_set, erased)
            lost |= sets.sweep(model)
        KeptOutputs(data / OUTPUTS).drop(lost)


def remove_set(data: Path, kept_set: KeptSet) -> KeptSet:
    """Removes all rows of a set, of which only the description remains. Raises OSError."""
    sets = KeptSets(data / BASELINES)
    with sets.alone():
        reduced = sets.leave(kept_set, np.empty((0, 0)), ())
        KeptOutputs(data / OUTPUTS).drop(sets.sweep(kept_set.model))
    return reduced


def _remove_rows(sets: KeptSets, kept_set: KeptSet, erased: frozenset[str]) -> None:
    kept = [number for number, token in enumerate(kept_set.subjects) if token not in erased]
    try:
        rows = sets.rows_of(kept_set)[kept] if kept else np.empty((0, 0))
    except CatalogError as error:  # a set that cannot be read is removed whole
        LOG.error("%s@%s of %s is removed: %s", kept_set.name, kept_set.version, kept_set.model, error)  # noqa: TRY400
        rows = np.empty((0, 0))
    sets.leave(kept_set, rows, [kept_set.subjects[number] for number in kept])

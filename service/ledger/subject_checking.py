"""Checks the keys of the persons in the database, and that nobody is back whom the list of erasures names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, select

from service.ledger.erasure_list import ListedErasure
from service.ledger.sealing import NO_TOKEN, CannotBeOpened, Vault, owner_of
from service.ledger.tables import set_subjects, subjects

ROWS_AT_ONCE = 500


def subject_key_faults(connection: Connection, vault: Vault) -> Iterator[str]:
    """Which subjects' keys the master key does not unwrap, and whether the row that identifies that key is gone."""
    for row in connection.execute(select(subjects).execution_options(yield_per=ROWS_AT_ONCE)):
        try:
            vault.unwrap(row.key, owner_of(row.token, row.lookup))
        except CannotBeOpened:
            yield f"the key of subject {row.token} is not what was written"
    if connection.scalar(select(subjects.c.token).where(subjects.c.token == NO_TOKEN)) is None:
        yield "the row that identifies the master key is missing"


def undone_erasures(connection: Connection, erasures: Sequence[ListedErasure], file_name: str) -> Iterator[str]:
    """Who is in the database again although the list in that file says they were erased."""
    yield from _returned_subjects(connection, erasures, file_name)
    yield from _returned_set_rows(connection, erasures, file_name)


def _returned_subjects(connection: Connection, erasures: Sequence[ListedErasure], file_name: str) -> Iterator[str]:
    for erasure in erasures:
        for token in connection.scalars(select(subjects.c.token).where(subjects.c.token.in_(erasure.tokens))):
            yield (
                f"subject {token} was erased by row {erasure.place} according to {file_name}, and is there again: the "
                "database is an older copy; the service erases the subject again when it starts"
            )


def _returned_set_rows(connection: Connection, erasures: Sequence[ListedErasure], file_name: str) -> Iterator[str]:
    places = {token: erasure.place for erasure in erasures for token in erasure.set_tokens}
    if not places:
        return
    for token in connection.scalars(select(set_subjects.c.token).where(set_subjects.c.lookup.is_not(None))):
        if token in places:
            yield (
                f"row {token} of a baseline set was erased by row {places[token]} according to {file_name}, and "
                "belongs to a person again: the database is an older copy; the service erases the row again when it "
                "starts"
            )

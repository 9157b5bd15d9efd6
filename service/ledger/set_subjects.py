"""Which person each row of a baseline set belongs to; the rows themselves are in files of the data folder.

Each row that belongs to a person has a token, in the set's description and here. An erasure removes the person's
pseudonym from the tokens, in its own transaction, and every process that has the files then removes the rows of tokens
without a pseudonym: at once, when it notices the erasure, or at its next start, also from files restored from a backup.
Rows whose tokens the database does not know stay, so that a new database does not cost any rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, insert, select, update

from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import SET_REMOVED, Event
from service.ledger.events import insert_event
from service.ledger.legal_holds import refuse_if_held
from service.ledger.sealing import Vault
from service.ledger.tables import set_subjects, subjects


class SetSubjects:
    """The stored tokens. Every call blocks on the database and raises LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self._engine = engine
        self._vault = vault

    def enter(self, tenant: str, row_subjects: Sequence[str | None]) -> list[str | None]:
        """Stores a new token for each row of a set that belongs to a subject of the tenant; None for the others."""
        tokens = [None if subject is None else secrets.token_hex(16) for subject in row_subjects]
        entries = [
            {"token": token, "lookup": self._vault.lookup(tenant, subject)}
            for token, subject in zip(tokens, row_subjects, strict=True)
            if subject is not None
        ]
        if entries:
            with database_in_reach(), self._engine.begin() as connection:
                connection.execute(insert(set_subjects), entries)
        return tokens

    def drop(self, tokens: Sequence[str | None]) -> None:
        """Deletes the tokens of a set that was not stored after all."""
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(delete(set_subjects).where(_is_among(tokens)))

    def erased(self) -> frozenset[str]:
        """The tokens of all rows that were erased."""
        with database_in_reach(), self._engine.connect() as connection:
            return frozenset(connection.scalars(select(set_subjects.c.token).where(set_subjects.c.lookup.is_(None))))

    def remove(
        self, tenant: str, key_id: str, about: str, details: Mapping[str, Any], tokens: Sequence[str | None]
    ) -> None:
        """Records the removal of a set, `about`, in the log, and removes the pseudonyms of its rows.

        Raises HeldByLaw where a legal hold is on the subject of one of them.
        """
        is_of_set = _is_among(tokens)
        with database_in_reach(), serialised(self._engine).begin() as connection:
            known = select(subjects.c.token).join(set_subjects, set_subjects.c.lookup == subjects.c.lookup)
            refuse_if_held(connection, tenant, connection.scalars(known.where(is_of_set).distinct()).all())
            insert_event(
                connection, Event(kind=SET_REMOVED, tenant=tenant, key_id=key_id, about=about, details=details)
            )
            connection.execute(update(set_subjects).where(is_of_set).values(lookup=None))


def _is_among(tokens: Sequence[str | None]) -> ColumnElement[bool]:
    return set_subjects.c.token.in_([token for token in tokens if token is not None])

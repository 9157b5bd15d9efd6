"""Whose the rows of baseline sets are, which lie in files of the data folder.

Each such row has a token, in the set's description and here. An erasure takes the person's pseudonym from the tokens,
in its own transaction, and every process that has the files then removes the rows of the tokens that are nobody's: at
once, when it notices the erasure, or at its next start, also from files that came back with a backup. Tokens that a
database knows nothing of stay, so that a new database costs no rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, insert, select, update

from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import SET_REMOVED, Event
from service.ledger.erasing import refuse_if_held
from service.ledger.events import insert_event
from service.ledger.sealing import Vault
from service.ledger.tables import set_subjects, subjects


class SetSubjects:
    """The stored tokens. Every call blocks on the database and raises LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self._engine = engine
        self._vault = vault

    def enter(self, tenant: str, named: Sequence[str | None]) -> list[str | None]:
        """A token for each row of a set, by the subject of the tenant whose it is; None where it is nobody's."""
        tokens = [None if subject is None else secrets.token_hex(16) for subject in named]
        rows = [
            {"token": token, "lookup": self._vault.lookup(tenant, subject)}
            for token, subject in zip(tokens, named, strict=True)
            if subject is not None
        ]
        if rows:
            with database_in_reach(), self._engine.begin() as connection:
                connection.execute(insert(set_subjects), rows)
        return tokens

    def drop(self, tokens: Sequence[str | None]) -> None:
        """Forgets the tokens of a set that was not kept after all."""
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(delete(set_subjects).where(_are(tokens)))

    def erased(self) -> frozenset[str]:
        """The tokens of all rows that were erased."""
        with database_in_reach(), self._engine.connect() as connection:
            return frozenset(connection.scalars(select(set_subjects.c.token).where(set_subjects.c.lookup.is_(None))))

    def remove(
        self, tenant: str, key_id: str, about: str, details: Mapping[str, Any], tokens: Sequence[str | None]
    ) -> None:
        """Tells the log that a set, `about`, is removed, and that its rows are nobody's.

        Raises HeldByLaw where one of them is held back from erasure.
        """
        rows = _are(tokens)
        with database_in_reach(), serialised(self._engine).begin() as connection:
            known = select(subjects.c.token).join(set_subjects, set_subjects.c.lookup == subjects.c.lookup)
            refuse_if_held(connection, tenant, connection.scalars(known.where(rows).distinct()).all())
            insert_event(
                connection, Event(kind=SET_REMOVED, tenant=tenant, key_id=key_id, about=about, details=details)
            )
            connection.execute(update(set_subjects).where(rows).values(lookup=None))


def _are(tokens: Sequence[str | None]) -> ColumnElement[bool]:
    return set_subjects.c.token.in_([token for token in tokens if token is not None])

"""The history of the schema, and the way to its newest state."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from service.ledger.database import database_in_reach, serialised


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Brings the database to the newest schema, or to an older `revision`, in one transaction.

    Processes that start together take turns.

    Raises LedgerUnavailable when the database does not answer.
    """
    config = Config()
    config.set_main_option("script_location", "service.ledger:migrations")
    config.set_main_option("path_separator", "os")
    with database_in_reach(), serialised(engine).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

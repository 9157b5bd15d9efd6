"""The history of the schema, and the way to its newest state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from service.errors import SetupError
from service.ledger.database import database_in_reach, serialised

if TYPE_CHECKING:
    from service.ledger.sealing import Vault

NEWEST = max(path.name.partition("_")[0] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))
"""The revision that this version of the program works with. Revisions are numbers of four digits, and grow."""


def upgrade(engine: Engine, revision: str = "head", vault: Vault | None = None) -> None:
    """Brings the database to the newest schema, or to an older `revision`, in one transaction.

    Processes that start together take turns. The `vault` seals what lies open in an older schema.

    Raises LedgerUnavailable when the database does not answer, SetupError when a later version made it.
    """
    from alembic import command  # a tenth of a second, which no command but this waits for
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

    config = Config()
    config.set_main_option("script_location", "service.ledger:migrations")
    config.set_main_option("path_separator", "os")
    with database_in_reach(), serialised(engine).begin() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found > NEWEST:
            raise SetupError(
                f"a later version of this program made this database: its schema is {found}, and this one knows none "
                f"after {NEWEST}. Start that version again, or a copy of the database from before it"
            )
        config.attributes["connection"] = connection
        config.attributes["vault"] = vault
        command.upgrade(config, revision)

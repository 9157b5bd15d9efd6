"""Has the database give up the bytes of what was erased, as far as it can be made to.

SQLite overwrites them (`secure_delete`), and its write-ahead log is emptied here. PostgreSQL keeps dead rows until they
are vacuumed; they hold ciphertext, and wrapped keys that only the master key opens.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import Engine

from service.ledger.tables import explanations, job_rows, set_subjects, subjects

ATTEMPTS = 50
RETRY_SECONDS = 0.02

_log = logging.getLogger(__name__)


def scrub(engine: Engine) -> None:
    """Empties SQLite's write-ahead log, or vacuums PostgreSQL's tables; a failure is logged, and repaired later by the
    database itself."""
    is_sqlite = engine.dialect.name == "sqlite"
    vacuums = [f"VACUUM {table.name}" for table in (subjects, explanations, job_rows, set_subjects)]
    statements = ["PRAGMA wal_checkpoint(TRUNCATE)"] if is_sqlite else vacuums
    connection = engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        if is_sqlite:
            driver.execute(
                "PRAGMA busy_timeout = 0"
            )  # or each attempt would wait for a reader as long as a request may
        else:
            driver.autocommit = True
        for statement in statements:
            for _ in range(ATTEMPTS):
                row = driver.execute(statement)
                if not is_sqlite or row.fetchone()[0] == 0:
                    break
                time.sleep(RETRY_SECONDS)  # a reader still uses what is to be moved
    except engine.dialect.loaded_dbapi.Error as error:
        _log.warning("the database keeps deleted bytes a while longer: %s", type(error).__name__)
    finally:
        connection.invalidate()

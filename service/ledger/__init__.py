"""The ledger: every explanation the service gives, written down before it is answered, and what became of it.

Reading order: `entries` (what is kept), `naming` and `sealing` (what belongs to people), `leaves` (rows of the log as
bytes), `tables`, `database`, `postgresql`, `writer` (how appends are grouped), `writer_process`, `appending`,
`remembering`, `searching`, `moments` (days and times), `events`, `reviews`, `merkle` (the tree over the log), `clock`,
`signing`, `growing_files`, `checkpoints`, `exporting` and `export_checking`, `ledger` (what the rest of the service
calls), `keys` and `key_history`, `jobs` and `job_history`, `erasing`, `erasure_list` and `restoring`, `stored_types`
and `verifying`, `opening` and the commands.
"""

from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.database import open_engine
from service.ledger.entries import (
    Entry,
    EntryRefused,
    Event,
    EventPage,
    EventSearch,
    LogChanged,
    MalformedCursor,
    Page,
    Search,
    Stored,
    StoredEvent,
)
from service.ledger.keys import SCOPES, Key, Keys
from service.ledger.ledger import Ledger
from service.ledger.migrations import upgrade
from service.ledger.sealing import Vault, WrongMasterKey, prepare_database

__all__ = [
    "SCOPES",
    "Checkpoint",
    "CheckpointSigner",
    "Entry",
    "EntryRefused",
    "Event",
    "EventPage",
    "EventSearch",
    "Key",
    "Keys",
    "Ledger",
    "LogChanged",
    "MalformedCursor",
    "Page",
    "Search",
    "Stored",
    "StoredEvent",
    "Vault",
    "WrongMasterKey",
    "open_engine",
    "prepare_database",
    "upgrade",
]

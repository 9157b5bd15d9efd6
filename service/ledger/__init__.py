"""The ledger: every explanation the service gives, written down before it is answered, and what became of it.

Reading order:

- what is recorded: `entries`, `searches`, `naming` and `sealing` (what belongs to people), `leaves` (rows of the log as
  bytes), `tables`;
- the database: `database`, `postgresql`, `migrations`, `opening`, `secret_files`;
- recording: `writer` (how appends are grouped), `writer_process`, `appending`, `remembering`, `clock`;
- reading: `searching`, `events`, `reviews`, `moments` (days and times);
- proofs: `merkle` (the tree over the log), `stored_tree`, `signing`, `growing_files`, `checkpoints`, `exporting`;
- `ledger`, which the rest of the service calls, made of `append_queue`, `reader_threads` and
  `checkpoint_schedule`;
- rows beside the log: `keys` and `key_history`, `stored_jobs`, `jobs` and `job_history`, `set_subjects`,
  `spent_quotas`;
- erasure: `legal_holds`, `tombstones`, `job_erasing`, `erasing`, `retention`, `scrubbing`, `erasure_list`, `restoring`,
  and `maintenance`, which runs it;
- verification: `verifying`, made of `row_checking`, `subject_checking`, `checkpoint_checking` and `sqlite_checking`;
  `export_checking`.
"""

from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.database import open_engine
from service.ledger.entries import Entry, EntryRefused, Event, LogChanged, Stored, StoredEvent
from service.ledger.keys import SCOPES, Key, Keys
from service.ledger.ledger import Ledger
from service.ledger.migrations import upgrade
from service.ledger.sealing import Vault, WrongMasterKey, prepare_database
from service.ledger.searches import EventPage, EventSearch, MalformedCursor, Page, Search

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

"""The ledger: every explanation the service gives, written down before it is answered.

Reading order: `entries` (what is kept), `tables`, `database`, `writer` (how appends are grouped),
`appending`, `searching`, `ledger` (what the rest of the service calls), `keys`.
"""

from service.ledger.database import open_engine
from service.ledger.entries import Entry, EntryRefused, MalformedCursor, Page, Search, Stored
from service.ledger.keys import SCOPES, Key, Keys
from service.ledger.ledger import Ledger
from service.ledger.migrations import upgrade

__all__ = [
    "SCOPES",
    "Entry",
    "EntryRefused",
    "Key",
    "Keys",
    "Ledger",
    "MalformedCursor",
    "Page",
    "Search",
    "Stored",
    "open_engine",
    "upgrade",
]

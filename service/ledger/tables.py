"""The tables, and the indexes that make every search a range scan from the newest record to the oldest.

`log` is the one append-only sequence: the records and their hashes. `explanations`, `explanation_tags` and `events`
hold the searchable values of its rows, all of which are in the records too. `nodes` are hashes of whole
subtrees over the log, `checkpoints` the signed sizes and roots, `signing_keys` the keys that signed them, `subjects`
the keys under which people's data is sealed, `set_subjects` the persons that rows of baseline sets in files belong to.

Each index on `explanations` ends in (created, seq), the order in which records are listed: by the time of the
decision, and by place in the log where two share a microsecond. Listing by `seq` alone would leave "from one
date to another" without an index, because the time of a decision and the order of commit differ by the time a
request waits.

The tags repeat `tenant` and `created` of their explanation for the same reason: one index answers a search by
tag.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    not_,
)

from service.ledger.entries import MAX_TEXT_LENGTH

FLAG = "flag"
COHORT = "cohort."
LABEL = "label"
"""Names of tags: a flag is ("flag", "protected_share"), a cohort ("cohort.channel", "web"), a label that was predicted
beside the one in the column ("label", "churn")."""
REVIEWED = ("reviewed", "true")
"""The tag of explanations that an event of the kind REVIEW is about; the only tag that is added later."""

metadata = MetaData()

text = String(MAX_TEXT_LENGTH)
place = BigInteger().with_variant(Integer, "sqlite")  # in SQLite only INTEGER names the row itself

log = Table(
    "log",
    metadata,
    Column("seq", place, primary_key=True, autoincrement=False),  # 1, 2, 3 ... in the order of commit
    Column("kind", text, nullable=False),
    Column("record", LargeBinary),  # exactly the bytes that the leaf is the hash of
    Column("leaf", LargeBinary(32), nullable=False),
)

explanations = Table(
    "explanations",
    metadata,
    Column("seq", place, primary_key=True, autoincrement=False),  # its place in the log
    Column("id", String(36), nullable=False),
    Column("tenant", text, nullable=False),
    Column("created", BigInteger, nullable=False),  # microseconds since the epoch, UTC
    Column("model", text, nullable=False),
    Column("version", text, nullable=False),
    Column("method", text, nullable=False),
    Column("label", text),
    Column("converged", Boolean, nullable=False),
    Column("decision_id", text),
    Column("subject", text),
    Column("key_id", text, nullable=False),
    Column("retention", text, nullable=False),
    Column("personal", LargeBinary),  # none when it was erased
    Column("tombstone", place),  # the place of the event that erased it
)

explanation_tags = Table(
    "explanation_tags",
    metadata,
    Column("seq", place, ForeignKey("explanations.seq"), primary_key=True, autoincrement=False),
    Column("name", String(MAX_TEXT_LENGTH + 20), primary_key=True),
    Column("value", text, primary_key=True),
    Column("tenant", text, nullable=False),
    Column("created", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    Column("seq", place, primary_key=True, autoincrement=False),  # its place in the log
    Column("kind", text, nullable=False),
    Column("tenant", text, nullable=False),
    Column("created", BigInteger, nullable=False),  # microseconds since the epoch, UTC
    Column("key_id", text, nullable=False),
    Column("about", text),
)

nodes = Table(
    "nodes",
    metadata,
    Column("height", Integer, primary_key=True, autoincrement=False),
    Column("place", place, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(32), nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", place, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),  # exactly the bytes that are signed
    Column("signature", LargeBinary(64), nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("place", Integer, primary_key=True, autoincrement=False),  # 1, 2, 3 ...
    Column("statement", LargeBinary, nullable=False),  # exactly the bytes that are signed
    Column("signature", LargeBinary(64), nullable=False),  # by the key itself
    Column("endorsement", LargeBinary(64)),  # by the key before it
)

subjects = Table(
    "subjects",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("lookup", String(64), nullable=False),
    Column("key", LargeBinary(60), nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("hash", String(64), nullable=False),  # SHA-256 of the key, hexadecimal; the key itself is never stored
    Column("tenant", text, nullable=False),
    Column("scopes", text, nullable=False),
    Column("name", text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("account", String(36)),  # the id of the first of the keys that replace one another; none: its own
    Column("quota", Text),  # JSON; see service.access.permissions
    Column("policy", Text),
    Column("salt", String(32)),  # where the log holds no hash but a commitment to it, lest the key be guessed
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tenant", text, nullable=False),
    Column("key_id", text, nullable=False),
    Column("kind", text, nullable=False),
    Column("state", text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("ended", BigInteger),
    Column("spec", LargeBinary, nullable=False),  # JSON: what is to be done, without anybody's data
    Column("total", BigInteger),
    Column("done", BigInteger, nullable=False),  # of exports; rows tell of themselves, until the job has ended
    Column("detail", Text),
    Column("owner", String(36)),  # the run of it, until its lease ends
    Column("leased_until", BigInteger),
    Column("failed", BigInteger),  # none of jobs that ended before this was kept
)

job_rows = Table(
    "job_rows",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("explanation_id", String(36), nullable=False),  # that it will have
    Column("source", String(36)),  # the explanation whose input is taken
    Column("payload", LargeBinary),  # sealed: instance and context, until the row is finished
    Column("outcome", text),
    Column("detail", Text),
    Column("subject", String(64)),  # whose input it is, by the pseudonym of `subjects`, until the row is finished
    sqlite_with_rowid=False,
)

remembered = Table(
    "remembered_requests",  # by Idempotency-Key, for a day
    metadata,
    Column("seq", place),  # of the last record that it made, where these stand in the log
    Column("lookup", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("answer", LargeBinary, nullable=False),  # JSON from which the reply is built again; nobody's data
)

spent_quotas = Table(
    "spent_quotas",
    metadata,
    Column("account", String(36), primary_key=True),
    Column("seconds", Integer, primary_key=True, autoincrement=False),  # the length of a period
    Column("period", BigInteger, primary_key=True, autoincrement=False),  # its number since the epoch
    Column("member", String(32), primary_key=True),  # the process that admitted it
    Column("requests", BigInteger, nullable=False),
    Column("points", BigInteger, nullable=False),
)

set_subjects = Table(
    "set_subjects",
    metadata,
    Column("token", String(32), primary_key=True),  # of a row of a baseline set, whose file has it too
    Column("lookup", String(64)),  # whose row it is, by the pseudonym of `subjects`; none once it was erased
)

_of = explanations.c
_newest_first = (_of.created, _of.seq)

Index("explanations_id", _of.id, unique=True)
Index("explanations_newest", _of.tenant, *_newest_first)
Index("explanations_model", _of.tenant, _of.model, *_newest_first)
Index("explanations_version", _of.tenant, _of.model, _of.version, *_newest_first)
for _column in (_of.label, _of.decision_id, _of.subject):
    Index(
        f"explanations_{_column.name}",
        _of.tenant,
        _column,
        *_newest_first,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )
Index(
    "explanations_not_converged",  # the converged ones are nearly all: the index of the newest serves them
    _of.tenant,
    _of.converged,  # always false here; without it SQLite takes any index that has a column more
    *_newest_first,
    sqlite_where=not_(_of.converged),
    postgresql_where=not_(_of.converged),
)
Index(
    "explanations_retention",
    _of.retention,
    *_newest_first,
    sqlite_where=_of.tombstone.is_(None),
    postgresql_where=_of.tombstone.is_(None),
)
Index(
    "explanation_tags_newest",
    explanation_tags.c.tenant,
    explanation_tags.c.name,
    explanation_tags.c.value,
    explanation_tags.c.created,
    explanation_tags.c.seq,
)
_of_event = events.c
Index("events_newest", _of_event.tenant, _of_event.created, _of_event.seq)
Index("events_kind", _of_event.tenant, _of_event.kind, _of_event.created, _of_event.seq)
Index(
    "events_about",
    _of_event.tenant,
    _of_event.about,
    _of_event.created,
    _of_event.seq,
    sqlite_where=_of_event.about.is_not(None),
    postgresql_where=_of_event.about.is_not(None),
)
Index("remembered_requests_created", remembered.c.created)
Index("subjects_lookup", subjects.c.lookup, unique=True)
Index(
    "set_subjects_lookup",
    set_subjects.c.lookup,
    sqlite_where=set_subjects.c.lookup.is_not(None),
    postgresql_where=set_subjects.c.lookup.is_not(None),
)
Index("keys_hash", keys.c.hash, unique=True)
Index("jobs_newest", jobs.c.tenant, jobs.c.created, jobs.c.id)
Index("jobs_state", jobs.c.state, jobs.c.leased_until)
Index("job_rows_outcome", job_rows.c.job_id, job_rows.c.outcome)  # for counting: a row itself may hold an image
Index(
    "job_rows_subject",
    job_rows.c.subject,
    sqlite_where=job_rows.c.subject.is_not(None),
    postgresql_where=job_rows.c.subject.is_not(None),
)

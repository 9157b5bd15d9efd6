"""One log of explanations and events; tables for the tree over it, for checkpoints, keys and subjects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_text = sa.String(200)
_place = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_alive = sa.text("tombstone IS NULL")
_RARITY = {
    ("explanations", "explanations_id"): "1000000 1",
    ("explanations", "explanations_newest"): "1000000 200000 1 1",
    ("explanations", "explanations_model"): "1000000 200000 100000 1 1",
    ("explanations", "explanations_version"): "1000000 200000 100000 50000 1 1",
    ("explanations", "explanations_label"): "1000000 200000 100000 1 1",
    ("explanations", "explanations_decision_id"): "1000000 200000 2 1 1",
    ("explanations", "explanations_subject"): "1000000 200000 10 1 1",
    ("explanations", "explanations_not_converged"): "10000 2000 2000 1 1",
    ("explanations", "explanations_retention"): "1000000 1000000 1 1",
    ("explanation_tags", "explanation_tags_newest"): "1000000 200000 100000 20000 1 1",
    ("explanation_tags", "explanation_tags"): "1000000 2 2 1",
    ("events", "events_newest"): "1000000 200000 1 1",
    ("events", "events_kind"): "1000000 200000 100000 1 1",
    ("events", "events_about"): "1000000 200000 10 1 1",
}
"""By table and index: the number of rows, then how many share the first column, the first two, and so on."""


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    _create_log()
    op.execute("INSERT INTO log (seq, kind, record, leaf) SELECT seq, 'explanation', record, leaf FROM explanations")
    if is_sqlite:
        _rebuild_explanations()
    else:
        _alter_explanations()
    op.create_index(
        "explanations_retention",
        "explanations",
        ["retention", "created", "seq"],
        sqlite_where=_alive,
        postgresql_where=_alive,
    )
    _create_events()
    _create_evidence()
    if is_sqlite:
        _tell_what_is_rare()


def _create_log() -> None:
    op.create_table(
        "log",
        sa.Column("seq", _place, primary_key=True, autoincrement=False),
        sa.Column("kind", _text, nullable=False),
        sa.Column("record", sa.LargeBinary),
        sa.Column("leaf", sa.LargeBinary(32), nullable=False),
    )


def _alter_explanations() -> None:
    op.drop_column("explanations", "record")
    op.drop_column("explanations", "leaf")
    op.alter_column("explanations", "personal", nullable=True)
    op.add_column("explanations", sa.Column("retention", _text, nullable=False, server_default="standard"))
    op.alter_column("explanations", "retention", server_default=None)
    op.add_column("explanations", sa.Column("tombstone", _place))


def _rebuild_explanations() -> None:
    """SQLite changes a column by making the table anew, and the one that refers to it too."""
    indexes = sa.table("sqlite_master", sa.column("name"), sa.column("type"), sa.column("tbl_name"), sa.column("sql"))
    old = sa.select(indexes.c.name, indexes.c.sql).where(
        indexes.c.type == "index",
        indexes.c.tbl_name.in_(["explanations", "explanation_tags"]),
        indexes.c.sql.is_not(None),
    )
    kept = op.get_bind().execute(old).all()
    for name, _ in kept:
        op.drop_index(name)
    op.rename_table("explanation_tags", "old_tags")
    op.rename_table("explanations", "old_explanations")
    op.create_table(
        "explanations",
        sa.Column("seq", _place, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("model", _text, nullable=False),
        sa.Column("version", _text, nullable=False),
        sa.Column("method", _text, nullable=False),
        sa.Column("label", _text),
        sa.Column("converged", sa.Boolean, nullable=False),
        sa.Column("decision_id", _text),
        sa.Column("subject", _text),
        sa.Column("key_id", _text, nullable=False),
        sa.Column("retention", _text, nullable=False),
        sa.Column("personal", sa.LargeBinary),
        sa.Column("tombstone", _place),
    )
    op.create_table(
        "explanation_tags",
        sa.Column("seq", _place, sa.ForeignKey("explanations.seq"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(220), primary_key=True),
        sa.Column("value", _text, primary_key=True),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO explanations SELECT seq, id, tenant, created, model, version, method, label, converged,"
        " decision_id, subject, key_id, 'standard', personal, NULL FROM old_explanations"
    )
    op.execute("INSERT INTO explanation_tags SELECT seq, name, value, tenant, created FROM old_tags")
    op.drop_table("old_tags")
    op.drop_table("old_explanations")
    for _, sql in kept:
        op.execute(sa.text(sql))


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", _place, primary_key=True, autoincrement=False),
        sa.Column("kind", _text, nullable=False),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("key_id", _text, nullable=False),
        sa.Column("about", _text),
    )
    named = sa.text("about IS NOT NULL")
    op.create_index("events_newest", "events", ["tenant", "created", "seq"])
    op.create_index("events_kind", "events", ["tenant", "kind", "created", "seq"])
    op.create_index(
        "events_about",
        "events",
        ["tenant", "about", "created", "seq"],
        sqlite_where=named,
        postgresql_where=named,
    )


def _create_evidence() -> None:
    op.create_table(
        "nodes",
        sa.Column("height", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("place", _place, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", _place, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
    )
    op.create_table(
        "signing_keys",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("statement", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.Column("endorsement", sa.LargeBinary(64)),
    )
    op.create_table(
        "subjects",
        sa.Column("token", sa.String(32), primary_key=True),
        sa.Column("lookup", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary(60), nullable=False),
    )
    op.create_index("subjects_lookup", "subjects", ["lookup"], unique=True)


def _tell_what_is_rare() -> None:
    """The statistics of a typical ledger, for SQLite; see the first migration."""
    op.execute("ANALYZE")
    statistics = sa.table("sqlite_stat1", sa.column("tbl"), sa.column("idx"), sa.column("stat"))
    op.execute(sa.delete(statistics))
    op.bulk_insert(
        statistics,
        [{"tbl": table, "idx": index, "stat": rarity} for (table, index), rarity in _RARITY.items()],
    )
    op.execute("ANALYZE sqlite_schema")  # open connections read them again

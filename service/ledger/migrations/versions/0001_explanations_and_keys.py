"""Explanations with their tags, and keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_text = sa.String(200)
_RARITY = {
    ("explanations", "explanations_id"): "1000000 1",
    ("explanations", "explanations_newest"): "1000000 200000 1 1",
    ("explanations", "explanations_model"): "1000000 200000 100000 1 1",
    ("explanations", "explanations_version"): "1000000 200000 100000 50000 1 1",
    ("explanations", "explanations_label"): "1000000 200000 100000 1 1",
    ("explanations", "explanations_decision_id"): "1000000 200000 2 1 1",
    ("explanations", "explanations_subject"): "1000000 200000 10 1 1",
    ("explanations", "explanations_not_converged"): "10000 2000 2000 1 1",
    ("explanation_tags", "explanation_tags_newest"): "1000000 200000 100000 20000 1 1",
    ("explanation_tags", "explanation_tags"): "1000000 2 2 1",
}
"""By table and index: the number of rows, then how many share the first column, the first two, and so on."""

_place = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_explanations()
    _create_tags()
    _create_keys()
    if op.get_bind().dialect.name == "sqlite":
        _tell_what_is_rare()


def _create_explanations() -> None:
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
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.Column("personal", sa.LargeBinary, nullable=False),
        sa.Column("leaf", sa.LargeBinary(32), nullable=False),
    )
    op.create_index("explanations_id", "explanations", ["id"], unique=True)
    _create_listing("newest", [])
    _create_listing("model", ["model"])
    _create_listing("version", ["model", "version"])
    for column in ("label", "decision_id", "subject"):
        _create_listing(column, [column], where=sa.text(f"{column} IS NOT NULL"))
    _create_listing("not_converged", ["converged"], where=sa.not_(sa.column("converged", sa.Boolean)))


def _create_listing(name: str, columns: list[str], where: sa.ColumnElement[bool] | sa.TextClause | None = None) -> None:
    op.create_index(
        f"explanations_{name}",
        "explanations",
        ["tenant", *columns, "created", "seq"],
        sqlite_where=where,
        postgresql_where=where,
    )


def _create_tags() -> None:
    op.create_table(
        "explanation_tags",
        sa.Column("seq", _place, sa.ForeignKey("explanations.seq"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(220), primary_key=True),
        sa.Column("value", _text, primary_key=True),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("explanation_tags_newest", "explanation_tags", ["tenant", "name", "value", "created", "seq"])


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("tenant", _text, nullable=False),
        sa.Column("scopes", _text, nullable=False),
        sa.Column("name", _text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
        sa.Column("revoked", sa.BigInteger),
    )
    op.create_index("keys_hash", "keys", ["hash"], unique=True)


def _tell_what_is_rare() -> None:
    """Writes the statistics of a typical ledger where SQLite looks for those of ANALYZE.

    Without any, it takes the index of the most columns: a search by model, version and subject would read all
    explanations of that version, 200 ms over a million, instead of the few of that subject.
    """
    op.execute("ANALYZE")
    statistics = sa.table("sqlite_stat1", sa.column("tbl"), sa.column("idx"), sa.column("stat"))
    op.execute(sa.delete(statistics))
    op.bulk_insert(
        statistics,
        [{"tbl": table, "idx": index, "stat": rarity} for (table, index), rarity in _RARITY.items()],
    )
    op.execute("ANALYZE sqlite_schema")  # open connections read them again

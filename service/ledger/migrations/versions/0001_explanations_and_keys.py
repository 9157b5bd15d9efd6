"""Explanations with their tags, and keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_text = sa.String(200)
_place = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _create_explanations()
    _create_tags()
    _create_keys()


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
    _create_listing("not_converged", [], where=sa.not_(sa.column("converged", sa.Boolean)))


def _create_listing(
    name: str, columns: list[str], where: sa.ColumnElement[bool] | sa.TextClause | None = None
) -> None:
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
    op.create_index(
        "explanation_tags_newest", "explanation_tags", ["tenant", "name", "value", "created", "seq"]
    )


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

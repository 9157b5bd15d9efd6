"""The log holds all that the rows of keys do: those that are there are entered as they stand.

The hash of a key's secret is entered as a commitment, for the secret may be one that somebody chose.
"""

from __future__ import annotations

import secrets

import orjson
import sqlalchemy as sa
from alembic import op

from service.ledger.entries import KEY_KEPT, Event
from service.ledger.events import insert_event
from service.ledger.key_history import committed

revision = "0006"
down_revision = "0005"

_SCHEMA = "schema"
"""Who keeps the keys: the change of the schema."""

_columns = ("id", "hash", "tenant", "scopes", "name", "created", "expires", "revoked", "account", "quota", "policy")
_keys = sa.table("keys", *map(sa.column, (*_columns, "salt")))


def upgrade() -> None:
    op.add_column("keys", sa.Column("salt", sa.String(32)))
    connection = op.get_bind()
    for row in connection.execute(sa.select(_keys).order_by(_keys.c.created, _keys.c.id)).all():
        salt = secrets.token_hex(16)
        details = {
            "name": row.name,
            "scopes": row.scopes.split(" "),
            "expires": row.expires,
            "quota": {} if row.quota is None else orjson.loads(row.quota),
            "policy": {} if row.policy is None else orjson.loads(row.policy),
            "created": row.created,
            "account": row.account,
            "revoked": row.revoked,
            "commitment": committed(salt, row.hash),
        }
        insert_event(connection, Event(kind=KEY_KEPT, tenant=row.tenant, key_id=_SCHEMA, about=row.id, details=details))
        connection.execute(sa.update(_keys).where(_keys.c.id == row.id).values(salt=salt))

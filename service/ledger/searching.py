"""A search as SQL: a range of one index, from the newest to the oldest, continued at a cursor."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, and_, exists, literal, not_, select, tuple_

from service.errors import InvalidRequest
from service.ledger.entries import REVIEW, MalformedCursor, Page, Search, Stored
from service.ledger.tables import COHORT, FLAG, events, explanation_tags, explanations, log

LARGEST_PAGE = 1000

_CURSOR = struct.Struct(">qq")  # created, seq


def read_one(connection: Connection, tenant: str, explanation_id: str) -> Stored | None:
    """The explanation of that id, None when there is none or it is another tenant's."""
    found = explanations.c.id == explanation_id
    rows = connection.execute(_rows().where(found, explanations.c.tenant == tenant)).all()
    return next(iter(_stored(connection, rows)), None)


def read_page(connection: Connection, tenant: str, search: Search, limit: int, cursor: str | None) -> Page:
    """The first `limit` explanations behind `cursor`.

    Raises InvalidRequest for a limit outside 1 to LARGEST_PAGE, MalformedCursor for a cursor that no page
    ended in.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidRequest(f"limit is a number from 1 to {LARGEST_PAGE}.")
    rows = connection.execute(statement(tenant, search, cursor).limit(limit + 1)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        tuple(_stored(connection, rows[:limit])),
        None if last is None else cursor_after(last.created, last.seq),
    )


def statement(tenant: str, search: Search, cursor: str | None) -> Select[Any]:
    """The explanations that `search` asks for, from the newest to the oldest.

    Order and conditions on time are put to the rarest thing asked for, whose index ends in that order: a
    person or a decision, else the first tag, else the column of an explanation that the database chooses.
    """
    wanted = list(_tags(search))
    tags = [explanation_tags.alias() for _ in wanted]
    is_rare = search.subject is not None or search.decision_id is not None
    leading: FromClause = tags[0] if tags and not is_rare else explanations
    query = _rows().where(*_conditions(tenant, search), *_range(leading, tenant, search, cursor))
    for tag, (name, value) in zip(tags, wanted, strict=True):
        is_tagged = and_(tag.c.seq == explanations.c.seq, tag.c.name == name, tag.c.value == value)
        query = query.join(tag, is_tagged)
    return query.order_by(leading.c.created.desc(), leading.c.seq.desc())


def _rows() -> Select[Any]:
    """Explanations with what the log holds of them."""
    return select(explanations, log.c.record, log.c.leaf).join_from(explanations, log, log.c.seq == explanations.c.seq)


def _tags(search: Search) -> Iterable[tuple[str, str]]:
    if search.flag is not None:
        yield FLAG, search.flag
    for name, value in search.cohort:
        yield f"{COHORT}{name}", value


def _conditions(tenant: str, search: Search) -> Iterable[ColumnElement[bool]]:
    yield explanations.c.tenant == tenant
    if search.converged is not None:
        # Written out, not as a parameter: the partial index answers only to the words it was made with.
        yield explanations.c.converged.is_(True) if search.converged else not_(explanations.c.converged)
    if search.reviewed is not None:
        about_it = (events.c.tenant == tenant, events.c.about == explanations.c.id, events.c.kind == REVIEW)
        review = exists().where(*about_it)
        yield review if search.reviewed else not_(review)
    for column in ("model", "version", "subject", "decision_id", "label"):
        if (value := getattr(search, column)) is not None:
            yield explanations.c[column] == value


def _range(leading: FromClause, tenant: str, search: Search, cursor: str | None) -> Iterable[ColumnElement[bool]]:
    yield leading.c.tenant == tenant
    if search.created_from is not None:
        yield leading.c.created >= search.created_from
    if search.created_to is not None:
        yield leading.c.created < search.created_to
    if cursor is not None:
        created, seq = place_of(cursor)
        yield tuple_(leading.c.created, leading.c.seq) < tuple_(literal(created), literal(seq))


def cursor_after(created: int, seq: int) -> str:
    return urlsafe_b64encode(_CURSOR.pack(created, seq)).decode().rstrip("=")


def place_of(cursor: str) -> tuple[int, int]:
    try:
        created, seq = _CURSOR.unpack(urlsafe_b64decode(f"{cursor}=="))
    except (ValueError, struct.error) as error:
        raise MalformedCursor("This cursor was not given by a search.") from error
    return created, seq


def _stored(connection: Connection, rows: Sequence[Row[Any]]) -> Iterable[Stored]:
    """The rows with their tags, which take one query for all."""
    tags = select(explanation_tags.c.seq, explanation_tags.c.name, explanation_tags.c.value).where(
        explanation_tags.c.seq.in_([row.seq for row in rows])
    )
    flags: dict[int, list[str]] = {row.seq: [] for row in rows}
    cohorts: dict[int, dict[str, str]] = {row.seq: {} for row in rows}
    for seq, name, value in connection.execute(tags) if rows else ():
        if name == FLAG:
            flags[seq].append(value)
        else:
            cohorts[seq][name.removeprefix(COHORT)] = value
    for row in rows:
        yield Stored(**row._mapping, flags=tuple(sorted(flags[row.seq])), cohort=cohorts[row.seq])

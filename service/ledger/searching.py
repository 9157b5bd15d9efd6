"""A search as SQL: a range of one index, from the newest to the oldest, continued at a cursor."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import merge
from itertools import accumulate, islice
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    exists,
    func,
    literal,
    not_,
    select,
    tuple_,
)

from service.errors import InvalidRequest
from service.ledger.entries import LogChanged, Stored
from service.ledger.leaves import Opened, content_of, read_opened
from service.ledger.sealing import CannotBeOpened, Vault, owner_of
from service.ledger.searches import Found, MalformedCursor, Page, Search
from service.ledger.tables import COHORT, FLAG, LABEL, REVIEWED, explanation_tags, explanations, log, subjects

MAX_PAGE = 1000
MAX_BYTES = 8 * 2**20
"""Stored bytes of the explanations of one page, unless the first alone is larger. One of an image can have some
megabytes, and takes several times as much memory while it is read: a page of 200 took 3.2 GB."""

_CURSOR = struct.Struct(">qq")  # created, seq


def read_one(
    connection: Connection, vault: Vault, tenant: str, explanation_id: str, *, opened: bool = True
) -> Stored | None:
    """The tenant's explanation of that id; None when there is none. With `opened` False, nothing sealed is opened."""
    is_it = explanations.c.id == explanation_id
    rows = connection.execute(_rows().where(is_it, explanations.c.tenant == tenant)).all()
    return next(iter(stored_explanations(connection, vault, rows, opened=opened)), None)


def read_page(
    connection: Connection, vault: Vault, tenant: str, search: Search, limit: int, cursor: str | None
) -> Page:
    """The first `limit` explanations after `cursor`, or fewer where these are larger than MAX_BYTES together.

    Raises InvalidRequest for a limit outside 1 to MAX_PAGE, MalformedCursor for a cursor that no page
    returned.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"limit is a number from 1 to {MAX_PAGE}")
    by_pseudonym = _by_pseudonym(connection, vault, tenant, search)
    rows = [] if by_pseudonym is None else _newest(connection, tenant, by_pseudonym, _sizes(), limit + 1, cursor)
    fitting = _fitting(rows[:limit])
    last = fitting[-1] if len(fitting) < len(rows) else None
    return Page(
        tuple(read_places(connection, vault, [row.seq for row in fitting])),
        None if last is None else cursor_after(last.created, last.seq),
        by_pseudonym,
    )


def read_found(connection: Connection, vault: Vault, tenant: str, search: Search, most: int) -> list[Found]:
    """The ids of the first `most` explanations, from the newest to the oldest, of any size; nothing is opened."""
    by_pseudonym = _by_pseudonym(connection, vault, tenant, search)
    if by_pseudonym is None:
        return []
    columns = select(explanations.c.id, explanations.c.created, explanations.c.seq, subjects.c.lookup)
    query = columns.join_from(explanations, subjects, subjects.c.token == explanations.c.subject, isouter=True)
    return [Found(row.id, row.lookup) for row in _newest(connection, tenant, by_pseudonym, query, most)]


def subject_tokens(connection: Connection, vault: Vault, tenant: str, subject: str) -> list[str]:
    """The token of a tenant's subject. Empty for a subject of whom nothing is recorded; several tokens for one recorded
    under several spellings, before all spellings had one pseudonym."""
    lookups = vault.lookups(tenant, subject)
    rows = connection.execute(select(subjects.c.lookup, subjects.c.token).where(subjects.c.lookup.in_(lookups)))
    tokens = {row.lookup: row.token for row in rows}
    return [tokens[lookup] for lookup in lookups if lookup in tokens]


def _by_pseudonym(connection: Connection, vault: Vault, tenant: str, search: Search) -> Search | None:
    """The search with the values of the columns in place of names; None when nothing is recorded of its subject."""
    if search.decision_id is not None:
        search = replace(search, decision_id=vault.decision(tenant, search.decision_id))
    if search.subject is None:
        return search
    tokens = subject_tokens(connection, vault, tenant, search.subject)
    return replace(search, subject=" ".join(tokens)) if tokens else None


def _newest(
    connection: Connection, tenant: str, search: Search, columns: Select[Any], most: int, cursor: str | None = None
) -> list[Row[Any]]:
    """The first `most` explanations that `search` asks for after `cursor`, from the newest to the oldest.

    In `search`, subject and decision are pseudonyms, and the tokens of a subject that has several are separated by
    spaces. `columns` has `created` and `seq` among what it selects.
    """
    found = [
        connection.execute(_newest_first(columns, tenant, one, tags, cursor).limit(most)).all()
        for one, tags in _alternatives(search)
    ]
    return list(islice(merge(*found, key=attrgetter("created", "seq"), reverse=True), most))


def _alternatives(search: Search) -> Iterator[tuple[Search, list[tuple[str, str]]]]:
    """Searches, each with the tags of what it finds, that together find what `search` asks for, and nothing twice: a
    label is in the column of a record, or beside another in a tag. Each reads a range of an index; one search with
    `or` would read and sort all that it finds."""
    tags = list(_tags(search))
    yield search, tags
    if search.label is not None:
        yield replace(search, label=None), [*tags, (LABEL, search.label)]


def _newest_first(
    columns: Select[Any], tenant: str, search: Search, tags: Iterable[tuple[str, str]], cursor: str | None
) -> Select[Any]:
    """The explanations with these columns and tags, from the newest to the oldest.

    Order and conditions on time apply to the most selective condition, whose index ends in that order: a person, a
    decision or a tolerance that was not met, else the first tag, else the column that the database chooses.
    """
    query, tables = _tagged(columns, tags)
    is_rare = search.subject is not None or search.decision_id is not None or search.converged is False
    leading: FromClause = tables[0] if tables and not is_rare else explanations
    query = query.where(*_conditions(tenant, search), *_range(leading, tenant, search, cursor))
    return query.order_by(leading.c.created.desc(), leading.c.seq.desc())


def read_in_log_order(
    connection: Connection, vault: Vault, tenant: str, search: Search, after: int, limit: int
) -> list[Stored]:
    """The next explanations that `search` asks for after a place of the log, in its order, for reading them all.

    At most `limit` of them, and fewer where these are larger than MAX_BYTES together; none after the last.
    """
    by_pseudonym = _by_pseudonym(connection, vault, tenant, search)
    if by_pseudonym is None:
        return []
    found = []
    for one, tags in _alternatives(by_pseudonym):
        query = _of_tenant(_sizes(), tenant, one, tags).where(explanations.c.seq > after)
        found.append(connection.execute(query.order_by(explanations.c.seq).limit(limit)).all())
    fitting = _fitting(list(islice(merge(*found, key=attrgetter("seq")), limit)))
    return read_places(connection, vault, [row.seq for row in fitting])


def fitting_places(connection: Connection, after: int, last: int) -> list[int]:
    """The places after `after`, up to `last`, of rows of the log that have at most MAX_BYTES together."""
    size = _length(log.c.record) + _length(explanations.c.personal)
    query = select(log.c.seq, size.label("size")).join_from(
        log, explanations, explanations.c.seq == log.c.seq, isouter=True
    )
    rows = connection.execute(query.where(log.c.seq > after, log.c.seq <= last).order_by(log.c.seq))
    return [row.seq for row in _fitting(rows.all())]


def count_found(connection: Connection, vault: Vault, tenant: str, search: Search) -> int:
    """The number of explanations that `search` asks for."""
    by_pseudonym = _by_pseudonym(connection, vault, tenant, search)
    if by_pseudonym is None:
        return 0
    count = select(func.count()).select_from(explanations)
    queries = [_of_tenant(count, tenant, one, tags) for one, tags in _alternatives(by_pseudonym)]
    return sum(connection.execute(query).scalar_one() for query in queries)


def read_places(connection: Connection, vault: Vault, places: Sequence[int]) -> list[Stored]:
    """The explanations at these places of the log, of all tenants, in this order."""
    rows = connection.execute(_rows().where(explanations.c.seq.in_(places))).all() if places else []
    order = {place: number for number, place in enumerate(places)}
    return list(stored_explanations(connection, vault, sorted(rows, key=lambda row: order[row.seq])))


def _of_tenant(query: Select[Any], tenant: str, search: Search, tags: Iterable[tuple[str, str]]) -> Select[Any]:
    """The query of explanations with these tags, in any order."""
    tagged, _ = _tagged(query, tags)
    return tagged.where(*_conditions(tenant, search), *_range(explanations, tenant, search, None))


def _tagged(query: Select[Any], tags: Iterable[tuple[str, str]]) -> tuple[Select[Any], list[FromClause]]:
    """The query with tables of these tags joined to it, and those tables."""
    tables: list[FromClause] = []
    for name, value in tags:
        tag = explanation_tags.alias()
        query = query.join(tag, and_(tag.c.seq == explanations.c.seq, tag.c.name == name, tag.c.value == value))
        tables.append(tag)
    return query, tables


def _rows() -> Select[Any]:
    """Explanations with their records and leaves in the log."""
    return select(explanations, log.c.record, log.c.leaf).join_from(explanations, log, log.c.seq == explanations.c.seq)


def _sizes() -> Select[Any]:
    """Places and sizes of explanations; a database knows the sizes without reading what is stored."""
    size = _length(log.c.record) + _length(explanations.c.personal)
    columns = select(explanations.c.seq, explanations.c.created, size.label("size"))
    return columns.join_from(explanations, log, log.c.seq == explanations.c.seq)


def _length(column: ColumnElement[bytes]) -> ColumnElement[int]:
    return func.coalesce(func.length(column), 0)


def _fitting(sized: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """The first of the rows, up to MAX_BYTES together, but at least one."""
    totals = accumulate(row.size for row in sized)
    return [
        row for index, (row, total) in enumerate(zip(sized, totals, strict=True)) if index == 0 or total <= MAX_BYTES
    ]


def _tags(search: Search) -> Iterable[tuple[str, str]]:
    if search.flag is not None:
        yield FLAG, search.flag
    for name, value in search.cohort:
        yield f"{COHORT}{name}", value
    if search.reviewed:
        yield REVIEWED


def _conditions(tenant: str, search: Search) -> Iterable[ColumnElement[bool]]:
    yield explanations.c.tenant == tenant
    if search.converged is not None:
        # Written out, not as a parameter: the partial index is only used for the very condition it was created with.
        yield explanations.c.converged.is_(True) if search.converged else not_(explanations.c.converged)
    if search.reviewed is False:
        mark = explanation_tags.alias()
        yield not_(
            exists().where(mark.c.seq == explanations.c.seq, mark.c.name == REVIEWED[0], mark.c.value == REVIEWED[1])
        )
    for column in ("model", "version", "subject", "decision_id", "label"):
        if (value := getattr(search, column)) is not None:
            several = value.split() if column == "subject" else [value]
            yield explanations.c[column] == value if len(several) == 1 else explanations.c[column].in_(several)


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
    """The cursor of the page that begins after that record."""
    return urlsafe_b64encode(_CURSOR.pack(created, seq)).decode().rstrip("=")


def place_of(cursor: str) -> tuple[int, int]:
    """The time and the place of the record that a page begins after. Raises MalformedCursor."""
    try:
        created, seq = _CURSOR.unpack(urlsafe_b64decode(f"{cursor}=="))
    except (ValueError, struct.error) as error:
        raise MalformedCursor("the cursor is not one that a search returned") from error
    return created, seq


def stored_explanations(
    connection: Connection, vault: Vault, rows: Sequence[Row[Any]], *, opened: bool = True
) -> Iterable[Stored]:
    """The rows with their tags and their sealed parts, which take one query each for all rows.

    A sealed part that is not what was written, or whose key is gone though no tombstone says why, is left empty: who
    reads it takes its record for damaged, and the others are read all the same.
    """
    tags = select(explanation_tags.c.seq, explanation_tags.c.name, explanation_tags.c.value).where(
        explanation_tags.c.seq.in_([row.seq for row in rows]), explanation_tags.c.name != REVIEWED[0]
    )
    flags: dict[int, list[str]] = {row.seq: [] for row in rows}
    labels: dict[int, list[str]] = {row.seq: [] for row in rows}
    cohorts: dict[int, dict[str, str]] = {row.seq: {} for row in rows}
    for seq, name, value in connection.execute(tags) if rows else ():
        if name == FLAG:
            flags[seq].append(value)
        elif name == LABEL:
            labels[seq].append(value)
        else:
            cohorts[seq][name.removeprefix(COHORT)] = value
    named = {row.subject for row in rows if row.subject is not None} if opened else set()
    keys = _readable_keys(connection, vault, named)
    for row in rows:
        yield _stored(row, vault if opened else None, keys, flags[row.seq], labels[row.seq], cohorts[row.seq])


def subject_keys(connection: Connection, vault: Vault, tokens: Collection[str]) -> dict[str, bytes]:
    """The keys of the subjects, by token, of those that exist. Raises LogChanged."""
    try:
        return {token: vault.unwrap(*wrapped) for token, wrapped in _wrapped_keys(connection, tokens).items()}
    except CannotBeOpened as error:
        raise LogChanged("the key of a subject is not what was written") from error


def _readable_keys(connection: Connection, vault: Vault, tokens: Collection[str]) -> dict[str, bytes]:
    """Likewise, without those that are not what was written."""
    keys: dict[str, bytes] = {}
    for token, wrapped in _wrapped_keys(connection, tokens).items():
        with suppress(CannotBeOpened):
            keys[token] = vault.unwrap(*wrapped)
    return keys


def _wrapped_keys(connection: Connection, tokens: Collection[str]) -> dict[str, tuple[bytes, str]]:
    if not tokens:
        return {}
    rows = connection.execute(select(subjects).where(subjects.c.token.in_(tokens)))
    return {row.token: (row.key, owner_of(row.token, row.lookup)) for row in rows}


def _stored(
    row: Row[Any],
    vault: Vault | None,
    keys: Mapping[str, bytes],
    flags: Sequence[str],
    further_labels: Sequence[str],
    cohort: Mapping[str, str],
) -> Stored:
    plaintext, opened = b"", Opened(None, None, b"")
    record = row.record or b""
    if row.personal is not None and vault is not None:
        with suppress(CannotBeOpened, KeyError, TypeError, ValueError):
            readable = vault.open(row.personal, row.id, keys.get(row.subject))
            opened = read_opened(record, readable)
            plaintext = readable
    named = {name: value for name, value in row._mapping.items() if name not in {"record", "subject", "decision_id"}}
    return Stored(
        **{**named, "personal": opened.personal},
        record=content_of(record),
        subject=opened.subject,
        decision_id=opened.decision_id,
        flags=tuple(sorted(flags)),
        further_labels=tuple(sorted(further_labels)),
        cohort=cohort,
        logged=record,
        opened=plaintext,
    )

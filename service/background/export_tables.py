"""Stored explanations as tables for people: CSV and Parquet, written row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any

from service.access.visibility import Absent
from service.answers.encoding import encode
from service.answers.reading import NOT_WHOLE, record_of
from service.ledger import LogChanged, Stored

ROWS_A_GROUP, CHARACTERS_A_GROUP = 5_000, 16 * 2**20
"""A row group of Parquet ends at whichever comes first. A row of an image can be some megabytes."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that a spreadsheet would evaluate; decision ids and subjects come from callers."""

COLUMNS: Mapping[str, type] = {
    "sequence": int,
    "id": str,
    "created": str,
    "model": str,
    "version": str,
    "digest": str,
    "method": str,
    "output_space": str,
    "target": str,
    "label": str,
    "prediction": str,
    "output": float,
    "baseline_output": float,
    "completeness_error": float,
    "attribution_error": float,
    "converged": bool,
    "reason": str,
    "evaluations": int,
    "decision_id": str,
    "subject": str,
    "flags": str,
    "cohort": str,
    "reasons": str,
    "attributions": str,
    "input": str,
    "erased": bool,
    "damaged": bool,
}
"""Of a table. `flags` and the codes of `reasons` are separated by spaces; what has parts of its own is JSON. Of a
record that was changed and cannot be read, which is `damaged`, there is only what the ledger knows besides."""

_TYPES: Mapping[type, type | tuple[type, ...]] = {int: int, str: str, float: (float, int), bool: bool}
"""What a column takes; a record that was changed may hold anything."""


def table_row(stored: Stored) -> dict[str, Any]:
    """An explanation as a row of a table; without what was erased."""
    known = {
        "sequence": stored.seq,
        "id": stored.id,
        "created": datetime.fromtimestamp(stored.created / 1e6, UTC).isoformat(timespec="microseconds"),
        "model": stored.model,
        "version": stored.version,
        "method": stored.method,
        "label": stored.label,
        "flags": " ".join(stored.flags),
        "cohort": _json(dict(stored.cohort)),
        "erased": stored.tombstone is not None,
    }
    try:
        row = {**known, **_recorded(stored), "damaged": False}
        is_damaged = not all(value is None or isinstance(value, _TYPES[COLUMNS[at]]) for at, value in row.items())
    except (LogChanged, *NOT_WHOLE):
        is_damaged = True
    return dict.fromkeys(COLUMNS) | (known | {"damaged": True} if is_damaged else row)


def _recorded(stored: Stored) -> dict[str, Any]:
    """The columns that only the record knows. Raises LogChanged, or one of `NOT_WHOLE`, where it was changed."""
    record = record_of(stored)
    return {
        "digest": None if record.model is None else record.model.digest,
        "output_space": record.output_space,
        "target": None if record.target is None else record.target.text,
        "prediction": None if record.prediction is None else _json(record.prediction),
        "output": record.output,
        "baseline_output": record.baseline_output,
        "completeness_error": record.completeness_error,
        "attribution_error": record.attribution_error,
        "converged": record.converged,
        "reason": record.reason,
        "evaluations": record.evaluations,
        "decision_id": None if isinstance(record.decision_id, Absent) else record.decision_id,
        "subject": None if isinstance(record.subject, Absent) else record.subject,
        "reasons": " ".join(reason.code for reason in record.reasons or () if reason.code),
        "attributions": _json(record.attributions),
        "input": _json(record.input),
    }


def write_csv(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows under a header; returns their number. No cell begins as a spreadsheet's formula does."""
    count = 0
    writer = csv.writer(_Encoded(file))
    writer.writerow(COLUMNS)
    for count, row in enumerate(rows, start=1):  # noqa: B007
        writer.writerow([_cell(value) for value in row.values()])
    return count


def write_parquet(file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows in groups of `ROWS_A_GROUP`, or fewer where they are large; returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {int: pa.int64(), str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(group) == ROWS_A_GROUP or size >= CHARACTERS_A_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Encoded:
    """A text file over a binary one, for the csv module, which writes a line at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _json(value: object) -> str | None:
    return None if value is None else encode(value).decode()

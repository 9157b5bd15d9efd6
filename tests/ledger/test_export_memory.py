"""Tables are written as streams: four times the records take the same memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.export_tables import COLUMNS, write_csv, write_parquet

if TYPE_CHECKING:
    Write = Callable[[IO[bytes], Iterable[Mapping[str, Any]]], int]


def rows(count: int, features: int = 38) -> Iterator[Mapping[str, Any]]:
    """Rows, of two kilobytes say, which come one by one."""
    values: dict[type, Any] = {str: None, int: 1, float: 0.5, bool: True}
    for number in range(count):
        wide = json.dumps({f"feature_{at}": number / (at + 1) for at in range(features)})
        yield {**{name: values[kind] for name, kind in COLUMNS.items()}, "attributions": wide, "input": wide}


def peak(write: Write, folder: Path, count: int, features: int = 38) -> int:
    """The most bytes that were held at once while so many rows were written, by Python and by Arrow."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    tracemalloc.start()
    pa.set_memory_pool(pool)
    try:
        with (folder / f"{count}").open("wb") as file:
            assert write(file, rows(count, features)) == count
        return tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        pa.set_memory_pool(before)
        tracemalloc.stop()


@pytest.mark.parametrize(("write", "few"), [(write_csv, 200), (write_parquet, 400)])
def test_memory_does_not_grow_with_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, few: int
) -> None:
    monkeypatch.setattr("service.export_tables.ROWS_A_GROUP", 100)
    peak(write, tmp_path, few)  # what is loaded and cached once
    assert peak(write, tmp_path, 4 * few) < 1.3 * peak(write, tmp_path, few) + 100_000


def test_a_group_of_large_rows_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.export_tables.CHARACTERS_A_GROUP", 125_000)
    peak(write_parquet, tmp_path, 20, 500)
    assert peak(write_parquet, tmp_path, 160, 500) < 1.3 * peak(write_parquet, tmp_path, 40, 500) + 100_000
    groups = pq.ParquetFile(tmp_path / "160").metadata
    assert (groups.num_rows, groups.num_row_groups > 10) == (160, True)

"""Tables are written as streams: four times the records take the same memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.background import export_tables
from service.background.export_tables import COLUMNS, write_csv, write_parquet

if TYPE_CHECKING:
    Write = Callable[[IO[bytes], Iterable[Mapping[str, Any]]], int]


def rows(count: int, features: int) -> Iterator[Mapping[str, Any]]:
    """Rows, of two kilobytes say, which come one by one."""
    values: dict[type, Any] = {str: None, int: 1, float: 0.5, bool: True}
    for number in range(count):
        wide = json.dumps({f"feature_{at}": number / (at + 1) for at in range(features)})
        yield {**{name: values[kind] for name, kind in COLUMNS.items()}, "attributions": wide, "input": wide}


def peak(write: Write, folder: Path, count: int, features: int) -> int:
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


def peaks(write: Write, folder: Path, few: int, many: int, features: int, limit: str, most: int) -> tuple[int, int]:
    """The peaks of few and of many rows where a limit of the groups is as told."""
    setattr(export_tables, limit, most)
    peak(write, folder, few, features)  # what is loaded and cached once
    return peak(write, folder, few, features), peak(write, folder, many, features)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPoolExecutor]:
    """A process of its own: what other threads of this one hold meanwhile would be counted too."""
    monkeypatch.syspath_prepend(Path.cwd())  # a spawned process looks for its code where its parent does
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize(("write", "few"), [(write_csv, 200), (write_parquet, 400)])
def test_memory_does_not_grow_with_the_records(
    tmp_path: Path, apart: ProcessPoolExecutor, write: Write, few: int
) -> None:
    least, most = apart.submit(peaks, write, tmp_path, few, 4 * few, 38, "ROWS_A_GROUP", 100).result()
    assert most < 1.3 * least + 100_000


def test_a_group_of_large_rows_ends_early(tmp_path: Path, apart: ProcessPoolExecutor) -> None:
    least, most = apart.submit(peaks, write_parquet, tmp_path, 40, 160, 500, "CHARACTERS_A_GROUP", 125_000).result()
    assert most < 1.3 * least + 100_000
    groups = pq.ParquetFile(tmp_path / "160").metadata
    assert (groups.num_rows, groups.num_row_groups > 10) == (160, True)

"""Reads a user's rows of data: a CSV file with or without a header, or an array in .npy, .npz or .safetensors."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.domain import Floats
from service.errors import CatalogError

SUFFIXES = (".csv", ".npy", ".npz", ".safetensors")
MISSING = {"", "na", "nan", "null", "none", "?"}
CategoryIndices = Mapping[str, int]
"""For one feature, the index of each of its categories, by how files write it."""


@dataclass(frozen=True, slots=True)
class Column:
    """An input of the model: the `name` or `title` of its column, and the indices of its categories, if it has some."""

    name: str
    title: str = ""
    indices: CategoryIndices | None = None

    def is_called(self, header: str) -> bool:
        """Whether the header is its name or title, exactly."""
        return header in (self.name, self.title)

    def may_be_called(self, name: str) -> bool:
        """Whether a name made of a header is its name, or the name made of its title."""
        return name in (self.name, _name(self.title, 0))


@dataclass(frozen=True, slots=True)
class Rows:
    """`values` [rows, columns], NaN where something is missing; `names` of the columns, where the file has them."""

    values: Floats
    names: tuple[str, ...] = ()


def read_rows(path: Path, shape: tuple[int, ...], dropped: Sequence[str], inputs: Sequence[Column] = ()) -> Rows:
    """The rows of the file, flat, for a model that takes `shape`; `dropped` names columns of a CSV that are no input.

    `inputs` are the model's, in order, where they are known. A CSV file with a header may have its columns in any
    order, and writes categories by name; any other file has them in the model's order, and writes categories as
    indices. Raises CatalogError, saying what to do.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise CatalogError(f"{path.name}: rows are read from {', '.join(SUFFIXES)} files")
    try:
        is_csv = path.suffix.lower() == ".csv"
        rows = _read_csv(path, dropped, inputs) if is_csv else Rows(_read_array(path))
    except (OSError, ValueError, EOFError, csv.Error, BadZipFile, SafetensorError) as error:
        raise CatalogError(f"{path.name} cannot be read: {error}") from error
    columns = prod(shape)
    if not len(rows.values):
        raise CatalogError(f"{path.name} holds no rows")
    if rows.values[0].size != columns:
        width = rows.values[0].size
        names = f": {', '.join(rows.names)}" if rows.names else ""
        more = "; name the columns that are no inputs with --drop" if width > columns and rows.names else ""
        raise CatalogError(f"{path.name} has {width} columns{names}; the model takes {columns}{more}")
    values = rows.values.reshape(len(rows.values), columns)
    if np.isinf(values).any():
        raise CatalogError(f"{path.name} holds infinite values")
    return Rows(values, rows.names)


def renames(path: Path, names: Sequence[str]) -> bool:
    """Whether none of `names` is a header of the file, so that they are new names for its columns, in order."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return True
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        headers = next(csv.reader(file), [])
    return not {header.strip() for header in headers}.intersection(names)


def _read_csv(path: Path, dropped: Sequence[str], inputs: Sequence[Column]) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if not lines:
        return Rows(np.empty((0, 0)))
    names: tuple[str, ...] = ()
    if not all(_is_number(cell) for cell in lines[0]):
        names, lines = tuple(cell.strip() for cell in lines[0]), lines[1:]
    unknown = [name for name in dropped if name not in names]
    if unknown:
        raise CatalogError(
            f"{path.name} has no column {unknown[0]!r}; its columns are {', '.join(names) or 'nameless'}"
        )
    kept = [at for at in range(len(names) or len(lines[0])) if not names or names[at] not in dropped]
    headers = [names[at] for at in kept] if names else []
    twice = next((name for name in headers if name and headers.count(name) > 1), None)
    if twice is not None:
        raise CatalogError(f"{path.name} has the column {twice!r} twice; which of them is meant? Rename one of them")
    indices: Sequence[CategoryIndices | None] = [None] * len(kept)
    if inputs and headers:
        kept = [kept[at] for at in in_order(path, headers, inputs)]
    if inputs and names:
        indices = [column.indices for column in inputs]
    values = np.empty((len(lines), len(kept)))
    for number, line in enumerate(lines):
        for place, at in enumerate(kept):
            values[number, place] = _value(path, line, number + 1 + bool(names), at, names, indices[place])
    return Rows(values, tuple(names[at] for at in kept) if names else ())


def in_order(path: Path, headers: Sequence[str], inputs: Sequence[Column]) -> list[int]:
    """For each input, the number of its column: the one called by its name or title, exactly or as a name made of a
    header.

    Raises CatalogError unless each column is exactly one input, and each input has a column.
    """
    column_of_input: dict[int, int] = {}
    for at, header in enumerate(headers):
        exact = [place for place, column in enumerate(inputs) if column.is_called(header)]
        own = exact or [place for place, column in enumerate(inputs) if column.may_be_called(_name(header, at))]
        if not own:
            names = ", ".join(column.name for column in inputs)
            raise CatalogError(
                f"{path.name} has the column {header!r}, and the model has no such input; its inputs are {names}. "
                "Name the columns that are no inputs with --drop"
            )
        if len(own) > 1 or own[0] in column_of_input:
            others = (inputs[place].name for place in own)
            which = f"be {' or '.join(others)}" if len(own) > 1 else f"both be {inputs[own[0]].name}"
            also = "" if len(own) > 1 else f" and {headers[column_of_input[own[0]]]!r}"
            raise CatalogError(
                f"{path.name}: {header!r}{also} may {which}; call the columns as the manifest calls its features"
            )
        column_of_input[own[0]] = at
    absent = [column.name for place, column in enumerate(inputs) if place not in column_of_input]
    if absent:
        raise CatalogError(f"the file has no column {absent[0]!r}; its columns are {', '.join(headers)}")
    return [column_of_input[place] for place in range(len(inputs))]


def _value(
    path: Path, line: Sequence[str], number: int, at: int, names: Sequence[str], indices: CategoryIndices | None
) -> float:
    column = repr(names[at]) if names else str(at + 1)
    if at >= len(line):
        raise CatalogError(f"{path.name}, line {number}: there is no column {column}")
    cell = line[at].strip()
    if indices is not None and cell in indices:
        return float(indices[cell])
    if cell.lower() in MISSING:
        return float("nan")
    if indices is not None:
        known = ", ".join([*indices][:20])
        raise CatalogError(f"{path.name}, line {number}: {cell[:40]!r} in column {column} is none of {known}")
    if not _is_number(cell):
        raise CatalogError(
            f"{path.name}, line {number}: {cell[:40]!r} in column {column} is no number; "
            "leave the column out with --drop, or encode it as the model takes it"
        )
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return True


def _read_array(path: Path) -> Floats:
    values: Floats = np.asarray(_arrays(path), dtype=np.float64)
    if values.ndim < 2:
        raise CatalogError(f"{path.name} holds an array of shape {list(values.shape)}; rows are [rows, ...]")
    return values


def load_array(path: Path) -> NDArray[Any]:
    """The array of a .npy, .npz or .safetensors file, as it is. Raises CatalogError."""
    if path.suffix.lower() not in SUFFIXES:
        raise CatalogError(f"{path.name}: rows are read from {', '.join(SUFFIXES)} files")
    try:
        return _arrays(path)
    except (OSError, ValueError, EOFError, BadZipFile, SafetensorError) as error:
        raise CatalogError(f"{path.name} cannot be read: {error}") from error


def _arrays(path: Path) -> NDArray[Any]:
    if path.suffix.lower() == ".safetensors":
        arrays = dict(load_file(path))
    else:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"rows": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    if "rows" not in arrays and len(arrays) != 1:
        raise CatalogError(f"{path.name} holds {', '.join(arrays) or 'nothing'}; call the array of rows `rows`")
    rows: NDArray[Any] = arrays.get("rows", next(iter(arrays.values())))
    return rows


def names_of(headers: Sequence[str], columns: int) -> tuple[str, ...]:
    """Different names for features, made of headers: letters, digits and underscores. A header that is a name is
    kept."""
    made = [_name(headers[at] if at < len(headers) else "", at) for at in range(columns)]
    taken = {name for at, name in enumerate(made) if at < len(headers) and headers[at] == name}
    names: list[str] = []
    for at, name in enumerate(made):
        is_own = at < len(headers) and headers[at] == name
        while name in names or (name in taken and not is_own):
            name, is_own = f"{name}_{at + 1}", False
        names.append(name)
    return tuple(names)


def _name(header: str, at: int) -> str:
    name = re.sub(r"\W+", "_", header, flags=re.ASCII).strip("_")
    return f"feature_{name or at + 1}" if not name or name[0].isdigit() else name


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts between commas, without the empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())

"""Instances from a file: rows of a table, JSON, a text, an image, or any file as bytes."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from service.client import Context, Feature, ModelDescription
from service.errors import UsageError

STANDARD_INPUT = "-"
TEXT, TEXT_PAIR = "text", "text_pair"
"""The columns of a text, and of the second of two, as the pipelines of transformers call them."""


class Form(StrEnum):
    """How a file is read."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    TEXT = "text"
    IMAGE = "image"
    BYTES = "bytes"


FORM_OF_SUFFIX = {
    ".csv": Form.CSV,
    ".json": Form.JSON,
    ".jsonl": Form.JSONL,
    ".ndjson": Form.JSONL,
    ".txt": Form.TEXT,
    ".png": Form.IMAGE,
    ".jpg": Form.IMAGE,
    ".jpeg": Form.IMAGE,
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of the file that are no features: whom a row is of, which decision it is, and those to pass over."""

    subject: str | None = None
    decision: str | None = None
    dropped: Sequence[str] = ()

    def context(self, row: dict[str, Any]) -> Context:
        """Takes its columns out of the row. Raises UsageError for one that is not there."""
        for name in self.dropped:
            row.pop(name, None)
        taken = {name: self._take(row, name) for name in (self.subject, self.decision) if name is not None}
        return Context(subject=taken.get(self.subject or ""), decision_id=taken.get(self.decision or ""))

    def _take(self, row: dict[str, Any], name: str) -> str | None:
        if name not in row:
            raise UsageError(f"the rows have no column {name!r}; they have {', '.join(row)}")
        value = row.pop(name)
        return None if value in (None, "") else str(value)


@dataclass(frozen=True, slots=True)
class ReadInstances:
    """The instances of a file, and the context of each."""

    instances: list[Any]
    contexts: list[Context]


def read_file(path: str, form: Form | None, model: ModelDescription, columns: Columns) -> ReadInstances:
    """The instances of a file, or of standard input for `-`. Raises UsageError."""
    form = form or FORM_OF_SUFFIX.get(Path(path).suffix.lower())
    if form is None:
        raise UsageError(
            f"how is {'standard input' if path == STANDARD_INPUT else path} to be read? Say so with --read-as: "
            f"{', '.join(Form)}"
        )
    try:
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        rows = READERS[form](content, model)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as {form}: {error}") from error
    if not rows:
        raise UsageError(f"{path} holds no instance")
    contexts = [columns.context(row) if isinstance(row, dict) else Context() for row in rows]
    return ReadInstances(rows, contexts)


def _read_csv(content: bytes, model: ModelDescription) -> list[Any]:
    features = {feature.name: feature for feature in model.inputs if feature.name is not None}
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    if not features and TEXT not in (rows.fieldnames or ()):
        raise ValueError(f"{model.name} takes no table; a column of texts is called `{TEXT}`")
    read: list[Any] = []
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has more or fewer cells than the heading")
        if features:
            read.append({name: _cell(text, features.get(name)) for name, text in row.items()})
        else:
            second = row.pop(TEXT_PAIR, None)
            read.append(row if second is None else {**row, TEXT: [row[TEXT], second]})
    return read


def _cell(text: str, feature: Feature | None) -> Any:
    """The value of a cell: a category as the model has it, else a number. What is neither the service refuses."""
    if feature is None:
        return text
    if text == "":
        return None
    if feature.categories is not None:
        return next((category for category in feature.categories if str(category) == text), text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read_json(content: bytes, _: ModelDescription) -> list[Any]:
    """A list of instances, the body of a request, or one instance."""
    read = json.loads(content)
    if isinstance(read, dict) and isinstance(read.get("instances"), list):
        read = read["instances"]
    return read if isinstance(read, list) else [read]


def _read_jsonl(content: bytes, _: ModelDescription) -> list[Any]:
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _read_text(content: bytes, _: ModelDescription) -> list[Any]:
    return [{"text": content.decode()}]


def _read_image(content: bytes, _: ModelDescription) -> list[Any]:
    return [{"image": base64.b64encode(content).decode()}]


def _read_bytes(content: bytes, _: ModelDescription) -> list[Any]:
    return [{"bytes": base64.b64encode(content).decode()}]


READERS: dict[Form, Callable[[bytes, ModelDescription], list[Any]]] = {
    Form.CSV: _read_csv,
    Form.JSON: _read_json,
    Form.JSONL: _read_jsonl,
    Form.TEXT: _read_text,
    Form.IMAGE: _read_image,
    Form.BYTES: _read_bytes,
}

"""Checks an export with nothing but a public key: no database, no service, no other secret."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import orjson

from service.ledger.checkpoints import Checkpoint, read_line
from service.ledger.entries import EXPLANATION, TOMBSTONE_KINDS
from service.ledger.exporting import (
    CHECKPOINT,
    FORMAT,
    KEYS,
    MANIFEST,
    MANIFEST_SIGNATURE,
    RECORDS,
    TOMBSTONES,
)
from service.ledger.leaves import covers, has_schema, read_head
from service.ledger.merkle import GrowingTree, is_included, leaf_hash
from service.ledger.signing import SigningKey, chain_faults, read_key_line, signed_by, signer_faults

MAX_FAULTS = 100
MAX_LINE_BYTES = 256 * 1024 * 1024
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError)


@dataclass(slots=True)
class Verdict:
    """The result of a verification. `faults` are sentences, the first `MAX_FAULTS` of `count`; none means valid.

    `records` and `erased` count rows, `size` is the number of rows of the log, in an export those under its checkpoint,
    and `signed` the time of the newest checkpoint. `kept_keys` counts the callers' keys that are older
    than the events of keys, and are only known as they were at `kept_at`. Times are in microseconds since the epoch,
    UTC.
    """

    records: int = 0
    erased: int = 0
    size: int = 0
    signed: int | None = None
    kept_keys: int = 0
    kept_at: int | None = None
    count: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether no fault was found."""
        return self.count == 0

    def add(self, *faults: str) -> None:
        """Adds faults."""
        self.count += len(faults)
        self.faults.extend(faults[: MAX_FAULTS - len(self.faults)])


def check_export(file: IO[bytes], public_key: str, known: Sequence[Checkpoint] = ()) -> Verdict:
    """Checks an export, in memory that grows with the number of erasures only.

    `public_key` is any key of the log's chain, hexadecimal. `known` are checkpoints that were kept elsewhere: the log
    of a complete export must begin with the rows that they cover. Never raises for what the file holds.
    """
    verdict = Verdict()
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, public_key, known, verdict)
    except MALFORMED as error:
        verdict.add(f"a row cannot be read: {type(error).__name__}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        verdict.add(f"the file cannot be read to the end: {error}")
    except zlib.error as error:
        verdict.add(f"the file cannot be read to the end: {error}")
    return verdict


def _check_archive(archive: zipfile.ZipFile, public_key: str, known: Sequence[Checkpoint], verdict: Verdict) -> None:
    names = sorted(archive.namelist())
    if names != sorted({RECORDS, TOMBSTONES, CHECKPOINT, KEYS, MANIFEST, MANIFEST_SIGNATURE}):
        verdict.add("the zip does not contain exactly the files of an export")
        return
    try:
        raw = archive.read(MANIFEST)
        manifest = orjson.loads(raw)
        chain = [read_key_line(line) for line in orjson.loads(archive.read(KEYS))]
        checkpoint = read_line(orjson.loads(archive.read(CHECKPOINT)))
        written = archive.read(MANIFEST_SIGNATURE)
        signature = orjson.loads(written)
        signer, signed = str(signature["key"]), bytes.fromhex(signature["signature"])
        expected, complete = int(manifest["records"]), bool(manifest["complete"])
        files: Mapping[str, Any] = manifest["files"]
        digests = {name: (str(files[name]["sha256"]), int(files[name]["bytes"])) for name in files}
        is_format = (manifest["schema"], manifest["type"]) == (FORMAT, "export")
    except MALFORMED as error:
        verdict.add(f"the manifest, the keys or the checkpoint cannot be read: {type(error).__name__}")
        return
    verdict.size, verdict.signed = checkpoint.size, checkpoint.created
    if not is_format or set(digests) != {RECORDS, TOMBSTONES, CHECKPOINT, KEYS}:
        verdict.add("the export has a format that this version does not know")
    verdict.add(*chain_faults(chain))
    if public_key not in {key.public_key for key in chain}:
        verdict.add("the public key that you trust is not among the keys of this log")
    is_as_written = written == orjson.dumps({"key": signer, "signature": signed.hex()})
    if not is_as_written or not signed_by(signer, signed, raw) or signer_faults(chain, signer, checkpoint.size):
        verdict.add("the manifest is not signed by a key of this log")
    verdict.add(*checkpoint_faults(checkpoint, chain))
    if manifest["size"] != checkpoint.size or manifest["log"] != checkpoint.log:
        verdict.add("the manifest and the checkpoint are about different logs, or different sizes of one")
    for name in (KEYS, CHECKPOINT):
        content = archive.read(name)
        if (hashlib.sha256(content).hexdigest(), len(content)) != digests.get(name):
            verdict.add(f"{name} does not match its digest in the manifest")
    tombstones = _Tombstones()
    with archive.open(TOMBSTONES) as lines:
        for seq, line in _lines(lines, TOMBSTONES, digests, verdict):
            _check_line(seq, line, checkpoint, verdict, tombstones)
    _check_records(archive, checkpoint, complete, expected, digests, known, verdict, tombstones)


def checkpoint_faults(checkpoint: Checkpoint, chain: Sequence[SigningKey]) -> list[str]:
    """What is wrong with a checkpoint itself: its signature, its key, or the log that it names."""
    name = f"the checkpoint over {checkpoint.size} rows"
    faults = [f"{name}: {fault}" for fault in signer_faults(chain, checkpoint.key, checkpoint.size)]
    if not signed_by(checkpoint.key, checkpoint.signature, checkpoint.body):
        faults.append(f"{name} is not signed by the key that it names")
    if chain and checkpoint.log != chain[0].public_key:
        faults.append(f"{name} belongs to another log")
    return faults


class _Tombstones:
    """The tombstones read so far, by place, and the erased records whose tombstone is still to come."""

    def __init__(self) -> None:
        self.details: dict[int, Mapping[str, Any]] = {}
        self.waiting: dict[int, list[tuple[int, bool]]] = {}

    def require(self, place: int, seq: int, *, without_record: bool) -> None:
        """Requires that the tombstone at `place`, read already or still to come, names the record at `seq`."""
        if place not in self.details or not covers(self.details[place], seq, without_record=without_record):
            self.waiting.setdefault(place, []).append((seq, without_record))

    def add(self, place: int, details: Mapping[str, Any]) -> None:
        """Adds a tombstone, and removes from `waiting` the records that it names."""
        self.details[place] = details
        waiting = self.waiting.pop(place, ())
        unnamed = [(seq, without) for seq, without in waiting if not covers(details, seq, without_record=without)]
        if unnamed:
            self.waiting[place] = unnamed


def _check_records(
    archive: zipfile.ZipFile,
    checkpoint: Checkpoint,
    complete: bool,
    expected: int,
    digests: Mapping[str, tuple[str, int]],
    known: Sequence[Checkpoint],
    verdict: Verdict,
    tombstones: _Tombstones,
) -> None:
    tree = GrowingTree()
    known_roots = {checkpoint.size: checkpoint.root for checkpoint in known}
    last = 0
    with archive.open(RECORDS) as lines:
        for seq, line in _lines(lines, RECORDS, digests, verdict):
            leaf = _check_line(seq, line, checkpoint, verdict, tombstones)
            verdict.records += 1
            if seq <= last:
                verdict.add(f"row {seq} comes after row {last}, out of order")
            last = seq
            for _ in tree.add(leaf):
                pass
            if complete and tree.size in known_roots and known_roots[tree.size] != tree.root().hex():
                verdict.add(f"the first {tree.size} rows differ from a checkpoint that you know")
    if verdict.records != expected:
        verdict.add(f"the export has {verdict.records} records, but its manifest says {expected}")
    if complete and (tree.size != checkpoint.size or tree.root().hex() != checkpoint.root):
        verdict.add("the manifest says that the export is complete, but it does not hold all rows of the log")
    if any(size > checkpoint.size for size in known_roots):
        verdict.add("a checkpoint that you know covers more rows: the end of the log was cut off")
    if checkpoint.root != known_roots.get(checkpoint.size, checkpoint.root):
        verdict.add("a checkpoint that you know has another root for the same number of rows")
    for place, erased in tombstones.waiting.items():
        verdict.add(*(f"row {seq} is empty, but no tombstone at row {place} accounts for it" for seq, _ in erased))


def _lines(
    file: IO[bytes], name: str, digests: Mapping[str, tuple[str, int]], verdict: Verdict
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    digest = hashlib.sha256()
    size = 0
    while line := file.readline(MAX_LINE_BYTES):
        digest.update(line)
        size += len(line)
        try:
            row = orjson.loads(line)
            yield int(row["seq"]), row
        except MALFORMED as error:
            verdict.add(f"a line of {name} cannot be read: {type(error).__name__}")
    if (digest.hexdigest(), size) != digests.get(name):
        verdict.add(f"{name} does not match its digest in the manifest")


def _check_line(
    seq: int, line: Mapping[str, Any], checkpoint: Checkpoint, verdict: Verdict, tombstones: _Tombstones
) -> bytes:
    """Checks one row; returns its leaf hash."""
    record = None if line["record"] is None else str(line["record"]).encode()
    leaf = bytes.fromhex(line["leaf"])
    if record is not None and leaf_hash(record) != leaf:
        verdict.add(f"row {seq}: the log record does not match its leaf hash")
    path = [bytes.fromhex(node) for node in line["path"]]
    if not is_included(leaf, seq - 1, checkpoint.size, path, bytes.fromhex(checkpoint.root)):
        verdict.add(f"row {seq}: its inclusion proof fails, so it is not in the signed log at this place")
    content = None if record is None else orjson.loads(record)
    if content is not None and has_schema(record or b"") and content["kind"] != EXPLANATION:
        if content["kind"] in TOMBSTONE_KINDS:
            tombstones.add(seq, content["details"])
        return leaf
    if line["personal"] is not None:
        if (
            record is None
            or hashlib.sha256(str(line["personal"]).encode()).hexdigest() != read_head(record).personal_commitment
        ):
            verdict.add(f"row {seq}: the personal part does not match its commitment in the log record")
        return leaf
    verdict.erased += 1
    place = line["tombstone"]
    if place is None:
        verdict.add(f"row {seq}: the personal part is missing, and no tombstone accounts for it")
    else:
        tombstones.require(int(place), seq, without_record=record is None)
    return leaf

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

MOST_FAULTS = 100
LONGEST_LINE = 256 * 1024 * 1024
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError)


@dataclass(slots=True)
class Verdict:
    """What a verification found. `faults` are sentences, the first `MOST_FAULTS` of `count`; none: all is as it was.

    `size` is that of the log at the signed checkpoint that it was held against. `kept_keys` counts the callers' keys
    that are older than the events which hold all of a key's row, and were kept as they stood at `kept_at`.
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
        """Whether nothing was found."""
        return self.count == 0

    def add(self, *faults: str) -> None:
        """Adds what was found."""
        self.count += len(faults)
        self.faults.extend(faults[: MOST_FAULTS - len(self.faults)])


def check_export(file: IO[bytes], public_key: str, known: Sequence[Checkpoint] = ()) -> Verdict:
    """Checks an export, in memory that grows with the number of erasures only.

    `public_key` is any key of the log's chain, hexadecimal. `known` are checkpoints that were kept elsewhere: the log
    of a complete export must begin with what they signed. Whatever the file holds, the answer is a verdict.
    """
    verdict = Verdict()
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, public_key, known, verdict)
    except MALFORMED as error:
        verdict.add(f"a row cannot be read: {type(error).__name__}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        verdict.add(f"the file cannot be read to its end: {error}")
    except zlib.error as error:
        verdict.add(f"the file cannot be read to its end: {error}")
    return verdict


def _check_archive(archive: zipfile.ZipFile, public_key: str, known: Sequence[Checkpoint], verdict: Verdict) -> None:
    names = sorted(archive.namelist())
    if names != sorted({RECORDS, TOMBSTONES, CHECKPOINT, KEYS, MANIFEST, MANIFEST_SIGNATURE}):
        verdict.add("the export has not the files that an export has")
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
        verdict.add("this is no export of a format that is known here")
    verdict.add(*chain_faults(chain))
    if public_key not in {key.public_key for key in chain}:
        verdict.add("the public key that you trust is not among the keys of this log")
    is_as_written = written == orjson.dumps({"key": signer, "signature": signed.hex()})
    if not is_as_written or not signed_by(signer, signed, raw) or signer_faults(chain, signer, checkpoint.size):
        verdict.add("the manifest is not signed by a key of this log")
    verdict.add(*checkpoint_faults(checkpoint, chain))
    if manifest["size"] != checkpoint.size or manifest["log"] != checkpoint.log:
        verdict.add("the manifest and the checkpoint do not speak of the same log")
    for name in (KEYS, CHECKPOINT):
        content = archive.read(name)
        if (hashlib.sha256(content).hexdigest(), len(content)) != digests.get(name):
            verdict.add(f"{name} is not what the manifest says")
    tombstones = _Tombstones()
    with archive.open(TOMBSTONES) as lines:
        for seq, line in _lines(lines, TOMBSTONES, digests, verdict):
            _check_line(seq, line, checkpoint, verdict, tombstones)
    _check_records(archive, checkpoint, complete, expected, digests, known, verdict, tombstones)


def checkpoint_faults(checkpoint: Checkpoint, chain: Sequence[SigningKey]) -> list[str]:
    """What is wrong with a checkpoint on its own."""
    name = f"the checkpoint over {checkpoint.size} rows"
    faults = [f"{name}: {fault}" for fault in signer_faults(chain, checkpoint.key, checkpoint.size)]
    if not signed_by(checkpoint.key, checkpoint.signature, checkpoint.body):
        faults.append(f"{name} is not signed by the key that it names")
    if chain and checkpoint.log != chain[0].public_key:
        faults.append(f"{name} is of another log")
    return faults


class _Tombstones:
    """The erasures that were met, by place, and the erased records that still wait for theirs."""

    def __init__(self) -> None:
        self.details: dict[int, Mapping[str, Any]] = {}
        self.waiting: dict[int, list[tuple[int, bool]]] = {}

    def ask(self, place: int, seq: int, *, without_record: bool) -> None:
        """Has the tombstone at that place name the record at `seq`, now or later."""
        if place not in self.details or not covers(self.details[place], seq, without_record=without_record):
            self.waiting.setdefault(place, []).append((seq, without_record))

    def met(self, place: int, details: Mapping[str, Any]) -> None:
        """Notes a tombstone, and who need wait for it no longer."""
        self.details[place] = details
        waiting = self.waiting.pop(place, ())
        still = [(seq, without) for seq, without in waiting if not covers(details, seq, without_record=without)]
        if still:
            self.waiting[place] = still


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
    grown = GrowingTree()
    roots = {one.size: one.root for one in known}
    last = 0
    with archive.open(RECORDS) as lines:
        for seq, line in _lines(lines, RECORDS, digests, verdict):
            leaf = _check_line(seq, line, checkpoint, verdict, tombstones)
            verdict.records += 1
            if seq <= last:
                verdict.add(f"row {seq} stands behind row {last}")
            last = seq
            for _ in grown.add(leaf):
                pass
            if complete and grown.size in roots and roots[grown.size] != grown.root().hex():
                verdict.add(f"the first {grown.size} rows are not those of a checkpoint that you know")
    if verdict.records != expected:
        verdict.add(f"there are {verdict.records} records, and the manifest says {expected}")
    if complete and (grown.size != checkpoint.size or grown.root().hex() != checkpoint.root):
        verdict.add("these are not all rows of the log, as the manifest claims")
    if any(size > checkpoint.size for size in roots):
        verdict.add("a checkpoint that you know is of a longer log: its end was cut off")
    if checkpoint.root != roots.get(checkpoint.size, checkpoint.root):
        verdict.add("a checkpoint that you know has another root over the same number of rows")
    for place, erased in tombstones.waiting.items():
        verdict.add(*(f"row {seq} is empty, and no tombstone at {place} says why" for seq, _ in erased))


def _lines(
    file: IO[bytes], name: str, digests: Mapping[str, tuple[str, int]], verdict: Verdict
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    digest = hashlib.sha256()
    size = 0
    while line := file.readline(LONGEST_LINE):
        digest.update(line)
        size += len(line)
        try:
            said = orjson.loads(line)
            yield int(said["seq"]), said
        except MALFORMED as error:
            verdict.add(f"a line of {name} cannot be read: {type(error).__name__}")
    if (digest.hexdigest(), size) != digests.get(name):
        verdict.add(f"{name} is not what the manifest says")


def _check_line(
    seq: int, line: Mapping[str, Any], checkpoint: Checkpoint, verdict: Verdict, tombstones: _Tombstones
) -> bytes:
    """Checks one row; returns its leaf."""
    record = None if line["record"] is None else str(line["record"]).encode()
    leaf = bytes.fromhex(line["leaf"])
    if record is not None and leaf_hash(record) != leaf:
        verdict.add(f"row {seq} is not what was recorded")
    path = [bytes.fromhex(one) for one in line["path"]]
    if not is_included(leaf, seq - 1, checkpoint.size, path, bytes.fromhex(checkpoint.root)):
        verdict.add(f"row {seq} is not in the log that was signed, or not at this place")
    said = None if record is None else orjson.loads(record)
    if said is not None and has_schema(record or b"") and said["kind"] != EXPLANATION:
        if said["kind"] in TOMBSTONE_KINDS:
            tombstones.met(seq, said["details"])
        return leaf
    if line["personal"] is not None:
        if (
            record is None
            or hashlib.sha256(str(line["personal"]).encode()).hexdigest() != read_head(record).personal_commitment
        ):
            verdict.add(f"the personal part of row {seq} is not what was recorded")
        return leaf
    verdict.erased += 1
    place = line["tombstone"]
    if place is None:
        verdict.add(f"the personal part of row {seq} is missing, and no tombstone says why")
    else:
        tombstones.ask(int(place), seq, without_record=record is None)
    return leaf

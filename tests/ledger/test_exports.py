"""Exports: whatever is changed in one is found, by our verifier and by one that knows the description only."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy import Engine

from service.ledger import CheckpointSigner, Entry, Event, Ledger, Search, exporting, searching
from service.ledger.export_checking import check_export
from service.ledger.exporting import all_lines, found_lines, write_export
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]


@pytest.fixture
def signer(engine: Engine, tmp_path: Path) -> CheckpointSigner:
    return CheckpointSigner(engine, tmp_path / "signing.pem", tmp_path / "checkpoints.jsonl")


def exported(engine: Engine, signer: CheckpointSigner, search: Search | None = None) -> bytes:
    """The whole log, or what the bank searches for."""
    checkpoint = signer.sign()
    assert checkpoint is not None
    file = io.BytesIO()
    if search is None:
        lines = all_lines(engine, VAULT, checkpoint.size)
        write_export(file, engine, signer, checkpoint, lines, {}, complete=True)
    else:
        found = found_lines(engine, VAULT, "bank", search, checkpoint.size)
        write_export(file, engine, signer, checkpoint, found, {"tenant": "bank"})
    return file.getvalue()


def independent_faults(file: IO[bytes], public_key: str) -> list[str]:
    """A verifier written from service/ledger/README.md, which shares no line with the service."""
    archive = zipfile.ZipFile(file)
    files = {name: archive.read(name) for name in archive.namelist()}
    manifest, signature = json.loads(files["manifest.json"]), json.loads(files["manifest.sig.json"])
    checkpoint, keys = json.loads(files["checkpoint.json"]), json.loads(files["keys.json"])
    body = json.loads(checkpoint["body"])
    faults = []

    def signed(key: str, by: str, content: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(by), content)
        except InvalidSignature:
            return False
        return True

    chain: list[str] = []
    for key in keys:
        said = json.loads(key["statement"])
        endorsed = not chain or signed(chain[-1], key["endorsement"], key["statement"].encode())
        if not endorsed or not signed(said["public_key"], key["signature"], key["statement"].encode()):
            faults.append("keys")
        chain.append(said["public_key"])
    if public_key not in chain or signature["key"] not in chain or body["key"] not in chain:
        faults.append("stranger")
    if not signed(signature["key"], signature["signature"], files["manifest.json"]):
        faults.append("manifest")
    if not signed(body["key"], checkpoint["signature"], checkpoint["body"].encode()):
        faults.append("checkpoint")
    for name, said in manifest["files"].items():
        if (hashlib.sha256(files[name]).hexdigest(), len(files[name])) != (said["sha256"], said["bytes"]):
            faults.append(name)
    lines = [json.loads(line) for name in ("records", "tombstones") for line in files[f"{name}.ndjson"].splitlines()]
    tombstones = {}
    for line in lines:
        said = {} if line["record"] is None else json.loads(line["record"])
        if said.get("kind") in ("erasure", "retention"):
            tombstones[line["seq"]] = said["details"]["records"]
    for line in lines:
        node = bytes.fromhex(line["leaf"])
        if line["record"] is not None and hashlib.sha256(b"\0" + line["record"].encode()).digest() != node:
            faults.append("leaf")
        place, last = line["seq"] - 1, body["size"] - 1
        for other in map(bytes.fromhex, line["path"]):
            if place % 2 or place == last:
                node = hashlib.sha256(b"\1" + other + node).digest()
                while place % 2 == 0 and place:
                    place, last = place // 2, last // 2
            else:
                node = hashlib.sha256(b"\1" + node + other).digest()
            place, last = place // 2, last // 2
        if node.hex() != body["root"] or last:
            faults.append("path")
        said = {} if line["record"] is None else json.loads(line["record"])
        if line["personal"] is not None:
            if hashlib.sha256(line["personal"].encode()).hexdigest() != said["personal_commitment"]:
                faults.append("personal")
        elif said.get("kind", "explanation") == "explanation":
            spans = tombstones.get(line["tombstone"], [])
            if not any(first <= line["seq"] <= last for first, last in spans):
                faults.append("tombstone")
    return faults


async def filled(ledger: Ledger, make_entry: EntryMaker, count: int = 30) -> None:
    for i in range(count):
        entry = make_entry(
            tenant=("bank", "bank", "broker")[i % 3], subject="Zoë" if i % 2 else None, flags=("seen",) if i % 5 else ()
        )
        await ledger.append([entry])
    await ledger.append([Event(kind="review", tenant="bank", key_id="key", details={"note": "é"})])


def rewritten(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The export with one file changed, as somebody with a zip program would."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for each in old.namelist():
            new.writestr(each, change(old.read(each)) if each == name else old.read(each))
    return out.getvalue()


async def test_a_whole_log_and_a_search_are_valid_to_both_verifiers(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await filled(ledger, make_entry)
    first = signer.open().public_key
    signer.sign()
    signer.rotate()
    await filled(ledger, make_entry)
    for search, count in ((None, 62), (Search(), 40), (Search(subject="Zoë", flag="seen"), 16), (Search(label="x"), 0)):
        content = exported(engine, signer, search)
        for key in (first, signer.open().public_key):
            verdict = check_export(io.BytesIO(content), key)
            assert verdict.faults == []
            assert (verdict.records, verdict.size) == (count, 62)
            assert independent_faults(io.BytesIO(content), key) == []
        assert check_export(io.BytesIO(content), "ab" * 32).faults
    lines = zipfile.ZipFile(io.BytesIO(content)).read("records.ndjson").splitlines()
    assert lines == []
    for line in zipfile.ZipFile(io.BytesIO(exported(engine, signer, Search()))).read("records.ndjson").splitlines():
        assert json.loads(json.loads(line)["record"])["tenant"] == "bank"
        assert json.loads(json.loads(line)["personal"])["content"] == {"input": [1, 2]}


async def test_a_key_that_was_replaced_signs_no_later_export(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, tmp_path: Path
) -> None:
    await filled(ledger, make_entry, 3)
    signer.sign()
    old = (tmp_path / "signing.pem").read_bytes()
    signer.rotate()
    await filled(ledger, make_entry, 3)
    content, retired = exported(engine, signer), load_pem_private_key(old, None)
    assert isinstance(retired, Ed25519PrivateKey)
    key = retired.public_key().public_bytes_raw().hex()
    assert check_export(io.BytesIO(content), key).is_valid
    manifest = zipfile.ZipFile(io.BytesIO(content)).read("manifest.json")
    forged = b'{"key":"%s","signature":"%s"}' % (key.encode(), retired.sign(manifest).hex().encode())

    verdict = check_export(io.BytesIO(rewritten(content, "manifest.sig.json", lambda _: forged)), key)

    assert verdict.faults == ["the manifest is not signed by a key of this log"]


async def test_every_flipped_bit_of_an_export_is_found(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await filled(ledger, make_entry, 12)
    content = exported(engine, signer)
    key = signer.open().public_key
    draw = random.Random(5)
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    for _ in range(120):
        name = draw.choice(names)

        def flipped(data: bytes) -> bytes:
            if not data:
                return b"x"
            at = draw.randrange(8 * len(data))
            return bytes(byte ^ (1 << at % 8 if i == at // 8 else 0) for i, byte in enumerate(data))

        assert not check_export(io.BytesIO(rewritten(content, name, flipped)), key).is_valid


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3] + lines[4:],
        lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1]],
        lambda _: [],
        lambda lines: [line.replace(b'"tombstone":null', b'"tombstone":3') for line in lines],
        lambda lines: [*lines[:2], b'{"seq": 3}', *lines[3:]],
        lambda lines: [*lines[:2], b"nonsense", *lines[3:]],
    ],
)
async def test_rows_that_are_deleted_reordered_or_cut_off(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, change: Any
) -> None:
    """Also where the manifest's digests are made to fit: then its own signature does not."""
    await filled(ledger, make_entry, 12)
    content = exported(engine, signer)
    key = signer.open().public_key
    spoilt = rewritten(content, "records.ndjson", lambda data: b"".join(x + b"\n" for x in change(data.splitlines())))
    assert not check_export(io.BytesIO(spoilt), key).is_valid
    records = zipfile.ZipFile(io.BytesIO(spoilt)).read("records.ndjson")

    def fitting(data: bytes) -> bytes:
        manifest = json.loads(data)
        manifest["files"]["records.ndjson"] = {"sha256": hashlib.sha256(records).hexdigest(), "bytes": len(records)}
        manifest["records"] = len(records.splitlines())
        return json.dumps(manifest).encode()

    assert not check_export(io.BytesIO(rewritten(spoilt, "manifest.json", fitting)), key).is_valid


async def test_an_earlier_checkpoint_shows_that_the_log_was_cut_or_rewritten(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await filled(ledger, make_entry, 9)
    before = signer.sign()
    assert before is not None
    await filled(ledger, make_entry, 9)
    content = exported(engine, signer)
    after = signer.sign()
    assert after is not None
    key = signer.open().public_key
    assert check_export(io.BytesIO(content), key, [before, after]).is_valid
    changed = {name: getattr(before, name) for name in before.__slots__}
    for other in ({"root": "ab" * 32}, {"size": 9}, {"size": 1000}):
        assert not check_export(io.BytesIO(content), key, [type(before)(**changed | other)]).is_valid


@pytest.mark.parametrize("content", [b"", b"PK", b"\0" * 1000])
def test_what_is_no_export(content: bytes) -> None:
    assert not check_export(io.BytesIO(content), "ab" * 32).is_valid


async def test_large_records_are_read_a_few_at_a_time(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, large = 400_000, json.dumps({"input": "x" * 100_000}).encode()
    monkeypatch.setattr(searching, "MAX_BYTES", most)
    monkeypatch.setattr(exporting, "MAX_BYTES", most)
    for _ in range(8):
        await ledger.append([make_entry(personal=large) for _ in range(8)])
    await ledger.append_event("lookup", "bank", "key")
    signer.sign()
    for search, count in ((Search(), 64), (None, 65)):
        tracemalloc.start()
        content = exported(engine, signer, search)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        verdict = check_export(io.BytesIO(content), signer.open().public_key)
        assert (verdict.faults, verdict.records) == ([], count)
        assert peak < 10 * most  # of 6.4 MB, and some stand in memory sealed, opened and written


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_an_export_takes_no_more_memory_for_more_records(
    ledger: Ledger,
    engine: Engine,
    signer: CheckpointSigner,
    make_entry: EntryMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "ROWS_AT_ONCE", 50)
    personal = json.dumps({"input": "x" * 1000}).encode()
    await ledger.append([make_entry(personal=personal) for _ in range(1200)])
    checkpoint = signer.sign()
    assert checkpoint is not None
    peaks = []
    for search in (Search(created_to=1_700_000_000_000_400), Search()):
        with (tmp_path / "export.zip").open("wb") as file:
            tracemalloc.start()
            lines = found_lines(engine, VAULT, "bank", search, checkpoint.size)
            count = write_export(file, engine, signer, checkpoint, lines, {})
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert count == 1200
    assert peaks[1] < 1.3 * peaks[0]
    with (tmp_path / "export.zip").open("rb") as file:
        assert check_export(file, signer.open().public_key).is_valid

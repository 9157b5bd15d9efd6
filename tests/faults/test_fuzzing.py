"""What is drawn at random, asked of a running service and read from folders of models. `FUZZ_CASES` says how many."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import MODELS
from tests.faults.conftest import WORKER

if TYPE_CHECKING:
    from tests.faults.conftest import Start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

CASES = int(os.environ.get("FUZZ_CASES", "200"))
FILES = max(20, CASES // 10)
"""Of each kind: reading one takes a fraction of a second."""
KINDS = ("onnx", "safetensors", "pt2", "baselines", "manifest", "tokenizer")
SECRET = "a key that the operator chose"
CONFIGURATION = Path(__file__).parent / "schemathesis.toml"
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def asked(report: Path) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """All requests, each with its answer, if there was one."""
    found = []
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished", {})
        interactions = scenario.get("recorder", {}).get("interactions", {}).values()
        found += [(one["request"], one["response"]) for one in interactions]
    return found


async def test_the_whole_description(
    start: Start, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """schemathesis: no 5xx, and every answer is one that the description has, the front still the same."""
    program = start("serve", "--models", str(MODELS), key=SECRET)
    async with program.client(SECRET) as client:
        while (await client.get("/v2/health/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        operations = [each for path in (await client.get("/openapi.json")).json()["paths"].values() for each in path]
        worker, report = program.children(WORKER), tmp_path / "report.ndjson"
        command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIGURATION), "run"]
        options = ["--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS), "--no-shrink"]
        size = ["--max-examples", str(max(1, CASES // len(operations))), "--header", f"Authorization: Bearer {SECRET}"]
        kept = ["--report", "ndjson", "--report-ndjson-path", str(report), "--output-truncate", "false"]
        run = subprocess.run
        done = await asyncio.to_thread(
            run,
            [*command, f"{program.address}/openapi.json", *options, *size, *kept],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert (await client.get("/v2/health/ready")).status_code == 200
    answers = asked(report)
    statuses = Counter(None if answer is None else answer["status_code"] for _, answer in answers)
    record_property("requests", len(answers))
    record_property("answers of 5xx", sum(count for status, count in statuses.items() if status and status >= 500))
    assert len(answers) >= CASES // 2
    assert done.returncode == 0, done.stdout[-20_000:]
    assert program.children(WORKER) == worker
    leaked = [answer for _, answer in answers if answer and SECRET.encode() in base64.b64decode(content_of(answer))]
    assert leaked == []


def content_of(answer: dict[str, Any]) -> str:
    content = answer.get("content") or {}
    text: str = content.get("$base64", "") if isinstance(content, dict) else ""
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files(kind: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """In a process of its own, which native code might end."""
    arguments = [kind, "0", str(FILES), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.mutated_files", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{sorted(path.name for path in tmp_path.iterdir())}: {done.stdout} {done.stderr[-2000:]}"
    )
    record_property(f"spoilt {kind} files", done.stdout.splitlines()[-1])

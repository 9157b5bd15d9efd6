"""A real Prometheus, from Debian's package: it scrapes the service, answers queries and evaluates the alert rules."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import NO_AUTHORITIES, PATIENCE_SECONDS

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
SCRAPE = "300ms"
MILLISECONDS_A_MINUTE = 300
"""What a minute of the alert rules is in the tests."""


def binary(name: str) -> str:
    """The program's path. Without it the test is skipped, or fails where `TESTS_REQUIRE` names prometheus."""
    path = shutil.which(name)
    if path is None and "prometheus" in os.environ.get("TESTS_REQUIRE", ""):
        pytest.fail(f"{name} is not installed, and TESTS_REQUIRE asks for it: apt-get install prometheus")
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return path


def shortened_rules() -> dict[str, Any]:
    """The alert rules with every minute shortened; nothing else is changed."""

    def shorten(text: str) -> str:
        text = text.replace("> 10 * 60", "> 9")  # checkpoints come every 5 s
        return re.sub(r"\b(\d+)m\b", lambda found: f"{int(found[1]) * MILLISECONDS_A_MINUTE}ms", text)

    rules: dict[str, Any] = yaml.safe_load(RULES.read_bytes())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = shorten(rule["expr"])
            if "for" in rule:
                rule["for"] = shorten(rule["for"])
    return rules


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers. Raises AssertionError for an error, such as a query that is none."""
        with httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES) as client:
            reply = client.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert reply["status"] == "success", (parameters, reply)
        return reply["data"]

    def values(self, expression: str) -> list[float]:
        """What a query answers now."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=expression)["result"]]

    @property
    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    @property
    def is_up(self) -> bool:
        """Whether it answers, and its last scrape of the service succeeded."""
        try:
            return self.values('up{job="answerable"}') == [1.0]
        except (httpx.TransportError, ValueError):  # while it starts it answers no JSON
            return False


@contextmanager
def prometheus(folder: Path, address: str, key: str) -> Iterator[Prometheus]:
    """A server that scrapes the service at `address` three times a second, with its files in `folder`."""
    program = binary("prometheus")
    folder.mkdir()
    (folder / "key").write_text(key)
    (folder / "rules.yml").write_text(yaml.safe_dump(shortened_rules()))
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
                "rule_files": [str(folder / "rules.yml")],
                "scrape_configs": [
                    {
                        "job_name": "answerable",
                        "authorization": {"credentials_file": str(folder / "key")},
                        "static_configs": [{"targets": [address.removeprefix("http://")]}],
                    }
                ],
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)

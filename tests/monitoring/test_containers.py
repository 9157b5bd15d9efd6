"""The files for containers, by the parsers there are: hadolint, and a strict reader of the compose specification.

No Docker runs where the tests run. `deploy/try_install.sh` runs the Dockerfile's commands in a clean root.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_bytes())
    return content


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, each on one line."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [line]
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line.strip())
    return found


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    run = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )

    assert (run.returncode, run.stdout) == (0, ""), run.stdout


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_runs_is_no_root_and_builds_nothing(target: str) -> None:
    found = stages()
    assert found[target] == [f"FROM run AS {target}", f"COPY --from=build-{target} /opt/answerable /opt/answerable"]
    run = "\n".join(found["run"])
    assert re.search(r"^USER (?!0)\d+:\d+$", run, re.MULTILINE)
    assert "HEALTHCHECK" in run
    assert "/v2/health/live" in run
    assert re.search(r"^RUN pip uninstall --yes pip setuptools wheel ", run, re.MULTILINE)  # the base image has them
    for tool in ("pip install", "apt-get", "gcc", "curl"):
        assert tool not in run
    assert "PYTHONDONTWRITEBYTECODE=1" in "\n".join(found["base"])
    assert "--no-compile" not in "\n".join(found[f"build-{target}"])  # else every process would compile everything
    assert list(found)[-1] == "cpu"  # the default


def test_the_build_takes_what_the_context_lets_through() -> None:
    ignored, *let_through = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    allowed = {line.removeprefix("!") for line in let_through if line.startswith("!")}
    for line in (
        line for stage in stages().values() for line in stage if line.startswith("COPY ") and "--from" not in line
    ):
        for source in line.split()[1:-1]:
            assert source.removeprefix("./") in allowed, line
            assert (ROOT / source).exists(), line


def test_compose_knows_every_word(compose: dict[str, Any]) -> None:
    known = PyCompose.from_json(json.dumps(compose))

    assert set(known.service_names()) == {
        "answerable",
        "answerable-gpu",
        "redis",
        "postgresql",
        "prometheus",
        "grafana",
    }
    compose["services"]["redis"]["resart"] = "always"
    with pytest.raises(ValueError, match="resart"):
        PyCompose.from_json(json.dumps(compose))


def test_what_compose_mounts_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in compose["volumes"], mount
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"]
    assert "gpu" in compose["services"]["answerable-gpu"]["profiles"]


def test_secrets_are_made_once_and_read_from_files(compose: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "make_secrets.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "deploy" / "make_secrets.sh").read_bytes())

    def make() -> dict[str, str]:
        subprocess.run(["bash", script], check=True, capture_output=True, timeout=PATIENCE_SECONDS)
        return {path.name: path.read_text() for path in (tmp_path / "deploy" / "secrets").iterdir()}

    made = make()
    assert make() == made
    assert len(set(made.values())) == len(made)
    assert all(len(secret) > 20 for secret in made.values())
    assert stat.S_IMODE((tmp_path / "deploy" / "secrets").stat().st_mode) == 0o700
    assert made["postgres_password"] in made["database_url"]
    assert {entry["file"] for entry in compose["secrets"].values()} == {f"deploy/secrets/{name}" for name in made}
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().split()
    environment = compose["services"]["answerable"]["environment"]
    named = {name: value for name, value in environment.items() if name.endswith("_FILE")}
    assert set(named) == {f"ANSWERABLE_{name}_FILE" for name in ("DATABASE_URL", "KEY", "METRICS_KEY")}
    assert {Path(value).name for value in named.values()} <= set(compose["services"]["answerable"]["secrets"])
    assert not any(secret in json.dumps(compose) for secret in made.values())

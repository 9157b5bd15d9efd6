"""Settings: secrets from files, and which of several sources counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import SettingsError

from service.settings import SECRETS, Settings


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without `.env`, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ANSWERABLE_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_the_file_that_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("  s3cret\n")
    monkeypatch.setenv(f"ANSWERABLE_{name.upper()}_FILE", str(tmp_path / "secret"))

    assert getattr(Settings(), name) == "s3cret"

    monkeypatch.setenv(f"ANSWERABLE_{name.upper()}", "nearer")
    assert getattr(Settings(), name) == "nearer"
    options: dict[str, Any] = {name: "nearest"}
    assert getattr(Settings(**options), name) == "nearest"


def test_a_secrets_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWERABLE_KEY_FILE", str(tmp_path / "absent"))

    with pytest.raises(SettingsError, match=r"ANSWERABLE_KEY_FILE: .*absent cannot be read: No such file"):
        Settings()


def test_a_file_counts_before_the_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ANSWERABLE_KEY=from-dotenv\nANSWERABLE_PORT=9999\n")
    assert Settings().key == "from-dotenv"

    (tmp_path / "secret").write_text("from-file")
    monkeypatch.setenv("ANSWERABLE_KEY_FILE", str(tmp_path / "secret"))
    assert (Settings().key, Settings().port) == ("from-file", 9999)

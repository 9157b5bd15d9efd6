"""Settings: secrets from files, and which of several sources counts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import SettingsError

from service.errors import SetupError
from service.settings import MIN_KEY_LENGTH, SECRETS, Settings, forget_secrets, read_settings, unknown_settings

PAGE = Path(__file__).parents[1] / "deploy" / "README.md"
VALUES = {"redis_url": "unix:///run/{}", "database_url": "postgresql://{}/ledger"}
"""What secrets look like that are no keys."""


def value(name: str, word: str) -> str:
    return VALUES.get(name, "{}").format(word.ljust(MIN_KEY_LENGTH, "-"))


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
    (tmp_path / "secret").write_text(f"  {value(name, 's3cret')}\n")
    monkeypatch.setenv(f"ANSWERABLE_{name.upper()}_FILE", str(tmp_path / "secret"))

    assert getattr(Settings(), name) == value(name, "s3cret")

    monkeypatch.setenv(f"ANSWERABLE_{name.upper()}", value(name, "nearer"))
    assert getattr(Settings(), name) == value(name, "nearer")
    options: dict[str, Any] = {name: value(name, "nearest")}
    assert getattr(Settings(**options), name) == value(name, "nearest")


def test_a_secrets_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWERABLE_KEY_FILE", str(tmp_path / "absent"))

    with pytest.raises(SettingsError, match=r"ANSWERABLE_KEY_FILE: .*absent cannot be read: No such file"):
        Settings()


def test_a_file_counts_before_the_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ANSWERABLE_KEY=from-the-dotenv-file\nANSWERABLE_PORT=9999\n")
    assert Settings().key == "from-the-dotenv-file"

    (tmp_path / "secret").write_text("from-the-secrets-file")
    monkeypatch.setenv("ANSWERABLE_KEY_FILE", str(tmp_path / "secret"))
    assert (Settings().key, Settings().port) == ("from-the-secrets-file", 9999)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("workers", "SECRET-that-slipped-in", " must be a whole number"),
        ("port", "SECRET", " must be a whole number"),
        ("port", "65536", " must be at most 65535"),
        ("key", "SECRET", " must have at least 20 characters"),
        ("metrics_key", "SECRET", " must have at least 20 characters"),
        ("ledger", "SECRET", " must be 'required', 'best_effort' or 'off'"),
        ("retention", "SECRET", ": write classes and months as standard=25,business=12"),
        ("retention", "SECRET=twelve", " must be a whole number"),
        ("trusted_artefacts", "SECRET", " must match the pattern ^[0-9a-f]{64}$"),
        ("redis_url", "SECRET", ": it must begin with redis:// or "),
        ("redis_url", "redis://:SECRET@host:port", ": its port is not a number"),
        ("database_url", "mysql://me:SECRET@host/ledger", ": it must begin with sqlite:// or "),
        ("database_url", "postgresql://me:SEC/RET@host:5432/ledger", ": its port is not a number"),
        ("database_url", "postgresql://me:[SECRET]@host/ledger", ": it is no address; write a password's special"),
        ("redis_url", "redis://:SECRET\u2100@host", ": it is no address; write a password's special"),
    ],
)
def test_a_wrong_value_is_named_and_never_repeated(
    name: str, given: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ANSWERABLE_{name.upper()}", given)

    with pytest.raises(SetupError) as refusal:
        read_settings({})

    assert str(refusal.value).startswith(f"ANSWERABLE_{name.upper()}{sentence}")
    assert "SEC" not in str(refusal.value)
    assert refusal.value.code == 2


def test_a_misspelt_setting_is_named_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWERABLE_DATABSE_URL", "postgresql://somewhere")
    monkeypatch.setenv("ANSWERABLE_METRICS_KEY_FILE", "not read here")
    (tmp_path / ".env").write_text("ANSWERABLE_PORT=9999\nANSWERABLE_ZZZ=1\nELSE=2\n")

    assert unknown_settings() == [
        "ANSWERABLE_DATABSE_URL is no setting and changes nothing; did you mean ANSWERABLE_DATABASE_URL?",
        "ANSWERABLE_ZZZ is no setting and changes nothing",
    ]


def test_secrets_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(f"ANSWERABLE_{name.upper()}", value(name, "s3cret"))
    monkeypatch.setenv("ANSWERABLE_PORT", "9999")

    forget_secrets()

    assert [name for name in os.environ if name.startswith("ANSWERABLE_")] == ["ANSWERABLE_PORT"]


def test_the_page_lists_every_setting() -> None:
    _, _, section = PAGE.read_text().partition("\n## Settings\n")
    rows = [line.split("|")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(?:ANSWERABLE|…)_([A-Z_]+)`", row)]

    secrets_in_files = [f"{name.upper()}_FILE" for name in SECRETS]
    assert sorted(listed) == sorted([*(name.upper() for name in Settings.model_fields), *secrets_in_files])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"oidc_issuer": "https://login.example"}, "ANSWERABLE_OIDC_ISSUER needs ANSWERABLE_OIDC_AUDIENCE"),
        ({"oidc_audience": "us"}, "ANSWERABLE_OIDC_AUDIENCE needs ANSWERABLE_OIDC_ISSUER"),
        ({"oidc_issuer": "http://login.example", "oidc_audience": "us"}, "must begin with https://"),
        ({"tls_certificate": Path("c.pem")}, "ANSWERABLE_TLS_CERTIFICATE needs ANSWERABLE_TLS_KEY"),
        ({"tls_client_ca": Path("ca.pem")}, "ANSWERABLE_TLS_CLIENT_CA needs ANSWERABLE_TLS_CERTIFICATE"),
    ],
)
def test_settings_that_need_each_other(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError, match=re.escape(says)):
        read_settings({"_env_file": None, **options})
    assert read_settings({"_env_file": None, "oidc_issuer": "http://127.0.0.1:9", "oidc_audience": "us"}).oidc_issuer

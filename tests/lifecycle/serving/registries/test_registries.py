"""Versions in Hugging Face's layout (held against huggingface_hub itself), in MLflow's, and on a web server."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants, snapshot_download

from service.errors import SetupError
from service.lifecycle.serving.registries.files import RegistryUnreachable
from service.lifecycle.serving.registries.registry import RemoteRegistry, open_registry
from tests.lifecycle.serving.registries.conftest import Answer, http_server
from tests.lifecycle.serving.test_repository import LOAN

COMMIT = "c" * 40
TOKEN = "hf_the-token-of-the-test"
FILES = {path.relative_to(LOAN).as_posix(): path for path in LOAN.rglob("*") if path.is_file()}
Asked = list[str]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, Asked]]:
    """A mirror of one repository that asks for a token, and what it was asked for; the cache is empty."""
    asked: Asked = []

    def answer(path: str, headers: dict[str, str]) -> Answer:
        path = unquote(urlsplit(path).path)
        asked.append(path)
        if headers.get("Authorization", headers.get("authorization")) != f"Bearer {TOKEN}":
            return 401, b"{}"
        if path == "/api/models/bank/loan/revision/v1":
            siblings = [{"rfilename": name} for name in FILES]
            return 200, json.dumps({"id": "bank/loan", "sha": COMMIT, "siblings": siblings}).encode()
        if path == f"/api/models/bank/loan/tree/{COMMIT}":
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, file in FILES.items()
            ]
            return 200, json.dumps(tree).encode()
        file = FILES.get(path.removeprefix(f"/bank/loan/resolve/{COMMIT}/"))
        return (404, b"") if file is None else (200, file.read_bytes())

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with http_server(answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # which loading a network of the hub sets in its process
        yield server, asked


def fetched(address: str, data: Path) -> Path:
    (place,) = open_registry(address, data).fetch()
    assert isinstance(place, Path)
    return place


def is_the_loan_model(place: Path) -> bool:
    return (place.parts[-2:], (place / "manifest.yaml").read_bytes()) == (
        ("loan", "1"),
        (LOAN / "manifest.yaml").read_bytes(),
    )


def test_a_repository_of_a_mirror(mirror: tuple[str, Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_the_loan_model(fetched("hf:bank/loan@v1", tmp_path / "data"))
    assert "train.py" not in "".join(mirror[1])
    with pytest.raises(RegistryUnreachable, match="check ANSWERABLE_MODELS and HF_TOKEN"):
        open_registry("hf:bank/loan@v2", tmp_path / "data").fetch()

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    one = open_registry("hf:bank/loan@v1", tmp_path / "data")
    with pytest.raises(RegistryUnreachable, match="may not be read"):
        one.fetch()
    assert "hf_wrong" not in "".join(one.problems)


def test_what_huggingface_hub_has_downloaded(
    mirror: tuple[str, Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    snapshot_download(
        "bank/loan", revision="v1", endpoint=mirror[0], cache_dir=tmp_path / "cache", token=TOKEN, max_workers=1
    )
    close_session()
    mirror[1].clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert is_the_loan_model(fetched("hf:bank/loan@v1", tmp_path / "data"))
    assert is_the_loan_model(fetched(f"hf:bank/loan@{COMMIT}", tmp_path / "data"))
    assert mirror[1] == []
    with pytest.raises(RegistryUnreachable, match="is not in the local cache"):
        open_registry("hf:bank/loan@v2", tmp_path / "data").fetch()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert is_the_loan_model(fetched("hf:bank/loan@v1", tmp_path / "other"))


@pytest.mark.parametrize("address", ["mlflow:models:/loan/3", "mlflow:models:/loan@champion"])
def test_a_version_in_mlflows_file_store(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "mlruns" / "models" / "loan"
    (model / "version-3").mkdir(parents=True)
    (model / "aliases").mkdir()
    (model / "aliases" / "champion").write_text("3")
    (model / "version-3" / "meta.yaml").write_text(f"name: loan\nsource: runs:/1/model\nstorage_location: {LOAN}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))

    assert is_the_loan_model(fetched(address, tmp_path / "data"))
    with pytest.raises(RegistryUnreachable, match="MLFLOW_TRACKING_URI names: check both"):
        open_registry("mlflow:models:/loan/4", tmp_path / "data").fetch()


def test_a_version_of_an_mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: str, headers: dict[str, str]) -> Answer:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if headers.get("Authorization", headers.get("authorization")) != "Bearer a-token":
            return 401, b"{}"
        known = {
            ("/api/2.0/mlflow/registered-models/alias", "loan", "champion"): {"model_version": {"version": "3"}},
            ("/api/2.0/mlflow/model-versions/get-download-uri", "loan", "3"): {"artifact_uri": LOAN.as_uri()},
            ("/api/2.0/mlflow/model-versions/get-download-uri", "loan", "5"): {"artifact_uri": "mlflow-artifacts:/1"},
        }
        found = known.get((parts.path, query["name"], query.get("version", query.get("alias", ""))))
        return (404, b"{}") if found is None else (200, json.dumps(found).encode())

    with http_server(answer) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        assert is_the_loan_model(fetched("mlflow:models:/loan/3", tmp_path))
        assert is_the_loan_model(fetched("mlflow:models:/loan@champion", tmp_path))
        for version, sentence in (("4", "check both"), ("5", "serve them from one")):
            with pytest.raises(RegistryUnreachable, match=sentence):
                open_registry(f"mlflow:models:/loan/{version}", tmp_path).fetch()


def test_a_folder_on_a_web_server(tmp_path: Path) -> None:
    def answer(path: str, _: dict[str, str]) -> Answer:
        inside = path.removeprefix("/models/loan/1/")
        listed = {"/models": ["loan/"], "/models/loan": ["1/"], "/models/loan/1": [*FILES]}.get(path.rstrip("/"))
        if listed is not None:
            links = "".join(f'<a href="{path.rstrip("/")}/{name}">{name}</a>' for name in listed)
            return 200, links.encode()
        return (200, FILES[inside].read_bytes()) if inside in FILES else (404, b"")

    with http_server(answer) as server:
        one = open_registry(f"{server}/models", tmp_path)
        assert is_the_loan_model(*one.fetch())  # type: ignore[arg-type]
        address = f"{server}/models"
    again = open_registry(address, tmp_path)
    assert is_the_loan_model(*again.start())  # type: ignore[arg-type]
    assert re.fullmatch(".* could not be looked up: .* cannot be reached .*", again.problems[0])


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ftp://there/models", "must be a folder, or an address that begins with"),
        ("http://there/models", "must begin with https://"),
        ("hf:loan", "hf:ORGANISATION/NAME@REVISION"),
        ("hf:bank/loan@../../x", "hf:ORGANISATION/NAME@REVISION"),
        ("mlflow:loan", "mlflow:models:/NAME/VERSION"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=sentence):
        open_registry(address, tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.lifecycle.serving.registries.registry.find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"pip install .*\[remote\]"):
        open_registry("s3://bucket/models", tmp_path)
    assert isinstance(open_registry("hf:bank/loan", tmp_path), RemoteRegistry)

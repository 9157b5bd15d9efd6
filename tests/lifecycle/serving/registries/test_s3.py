"""Versions in a real S3 server: fetched, looked up again, cut half way, changed and gone."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import pytest

from service.catalog.manifest import read_manifest
from service.errors import CatalogError, LoadRefused, NotFound, RegistryUnavailable
from service.lifecycle.serving.registries import fetching
from service.lifecycle.serving.registries.files import RegistryUnreachable
from service.lifecycle.serving.registries.registry import RemoteRegistry, Unfetched, open_registry
from service.lifecycle.serving.repository import Repository, read_catalog
from tests.lifecycle.serving.registries.conftest import S3
from tests.lifecycle.serving.test_repository import LOAN, Checks, LoadsAll, UnderTest, write

ADDRESS = "s3://models/production"


def registry(data: Path, address: str = ADDRESS) -> RemoteRegistry:
    opened = open_registry(address, data)
    assert isinstance(opened, RemoteRegistry)
    return opened


async def started(data: Path) -> UnderTest:
    opened = registry(data)
    catalog, engine, checks = read_catalog(opened), LoadsAll(), Checks(data)
    engine.is_open.set()
    repository = Repository(opened, data, catalog, engine, lambda *_: None, checker=checks)
    await repository.start()
    return UnderTest(repository, catalog, engine, checks)


@pytest.fixture
def published(s3: S3) -> S3:
    s3.publish(LOAN, "production/loan/1")
    return s3


def arriving(data: Path) -> list[Path]:
    return sorted((data / "versions" / ".fetching").iterdir())


def test_a_version_is_fetched_once_and_has_the_files_of_its_manifest(published: S3, tmp_path: Path) -> None:
    (place,) = registry(tmp_path).fetch()

    assert isinstance(place, Path)
    manifest, _, digest = read_manifest(LOAN)
    named = [*fetching.named_files(manifest)]
    assert {file for file, _ in named} == {manifest.artefact.file, *(one.file for one in manifest.baselines)}
    for file, sha256 in named:
        assert hashlib.sha256((place / file).read_bytes()).hexdigest() == sha256
    assert (place / "check.json").read_bytes() == (LOAN / "check.json").read_bytes()
    assert place == tmp_path / "versions" / digest.removeprefix("sha256:")[:32] / "loan" / "1"
    assert not (place / "train.py").exists()
    assert arriving(tmp_path) == []

    published.remove(f"production/loan/1/{manifest.artefact.file}")
    assert registry(tmp_path).fetch() == [place]


async def test_a_version_that_appears_while_serving_is_listed_and_loaded(published: S3, tmp_path: Path) -> None:
    one = await started(tmp_path / "data")
    assert one.catalog.find("loan", "1").is_ready
    published.publish(write(tmp_path / "made", "2"), "production/loan/2")

    states = {state.version: state.state for state in await one.repository.index()}
    assert states == {"1": "READY", "2": "UNAVAILABLE"}
    await one.repository.load("loan", "2")
    assert one.catalog.find("loan", "2").is_ready
    with pytest.raises(NotFound):
        await one.repository.load("loan", "3")


async def test_a_version_that_vanishes_is_served_until_the_next_start(published: S3, tmp_path: Path) -> None:
    published.publish(write(tmp_path / "made", "2"), "production/loan/2")
    one = await started(tmp_path / "data")
    published.remove("production/loan/2")

    with pytest.raises(NotFound):
        await one.repository.load("loan", "2")
    assert one.catalog.find("loan", "2").is_ready

    again = await started(tmp_path / "data")
    assert [str(version.key) for version in again.catalog] == ["loan@1"]
    published.proxy.left = 0  # and does not come back where nothing can be looked up
    offline = await started(tmp_path / "data")
    assert [str(version.key) for version in offline.catalog] == ["loan@1"]


async def test_what_was_fetched_is_served_where_nothing_can_be_looked_up(published: S3, tmp_path: Path) -> None:
    await started(tmp_path / "data")
    published.proxy.left = 0
    one = await started(tmp_path / "data")

    assert one.catalog.find("loan", "1").is_ready
    (problem,) = one.repository.problems
    assert problem.startswith(f"{ADDRESS} could not be looked up: {ADDRESS} cannot be reached (")
    with pytest.raises(RegistryUnavailable, match="check the network and the credentials"):
        await one.repository.load("loan", None)
    assert [state.state for state in await one.repository.index()] == ["READY"]

    published.proxy.left = None
    await one.repository.load("loan", None)
    assert one.repository.problems == []


def test_a_connection_that_is_cut_half_way_goes_on_where_it_stopped(
    published: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 4096
    made = write(tmp_path / "made", "1")
    manifest = read_manifest(made)[0]
    text = (made / "manifest.yaml").read_text()
    text = text.replace(manifest.artefact.sha256, hashlib.sha256(content).hexdigest())
    (made / "manifest.yaml").write_text(text)
    (made / manifest.artefact.file).write_bytes(content)
    published.publish(made, "production/loan/1")
    monkeypatch.setattr(fetching, "BLOCK_BYTES", 65536)
    one = registry(tmp_path / "data")
    reads: list[tuple[str, int]] = []
    read = one._files.read

    def noted(path: str, start: int, length: int) -> bytes:
        block = read(path, start, length)
        if path.endswith(manifest.artefact.file):
            reads.append((path, start))
        return block

    monkeypatch.setattr(one._files, "read", noted)
    published.proxy.left = len(content) // 2
    (cut,) = one.fetch()

    assert isinstance(cut, Unfetched)
    assert isinstance(cut.error, RegistryUnreachable)
    assert not [*(tmp_path / "data" / "versions").glob("*/loan")]
    (part,) = arriving(tmp_path / "data")
    assert 0 < part.stat().st_size < len(content)
    assert content.startswith(part.read_bytes())

    published.proxy.left = None
    (place,) = one.fetch()
    assert isinstance(place, Path)
    assert (place / manifest.artefact.file).read_bytes() == content
    assert [start for _, start in reads] == [*range(0, len(content), 65536)]  # no block came twice
    assert arriving(tmp_path / "data") == []


def test_what_arrived_of_another_file_is_not_mixed_in(published: S3, tmp_path: Path) -> None:
    artefact = read_manifest(LOAN)[0].artefact
    parts = tmp_path / "versions" / ".fetching"
    parts.mkdir(parents=True)
    (parts / artefact.sha256).write_bytes(b"of something else")
    (place,) = registry(tmp_path).fetch()

    assert isinstance(place, Path)
    assert (place / artefact.file).read_bytes() == (LOAN / artefact.file).read_bytes()


async def test_a_changed_file_behind_an_unchanged_manifest_is_refused(published: S3, tmp_path: Path) -> None:
    artefact = read_manifest(LOAN)[0].artefact
    changed = (LOAN / artefact.file).read_bytes()[:-1] + b"\0"
    published.put(f"production/loan/1/{artefact.file}", changed)
    one = await started(tmp_path / "data")

    assert one.catalog.faults.keys() == {("loan", "1")}
    assert "publish file and manifest again, together" in one.catalog.faults["loan", "1"]
    with pytest.raises(LoadRefused, match=hashlib.sha256(changed).hexdigest()):
        await one.repository.load("loan", "1")
    assert arriving(tmp_path / "data") == []
    published.publish(LOAN, "production/loan/1")
    await one.repository.load("loan", "1")
    assert one.catalog.find("loan", "1").is_ready


async def test_a_new_start_serves_what_was_fetched_where_the_new_files_are_wrong(published: S3, tmp_path: Path) -> None:
    await started(tmp_path / "data")
    other = write(tmp_path / "made", "1", title="Another")
    published.publish(other, "production/loan/1")
    artefact = read_manifest(LOAN)[0].artefact
    published.remove(f"production/loan/1/{artefact.file}")
    one = await started(tmp_path / "data")

    assert one.catalog.find("loan", "1").manifest.title == "Mortgage application decision"
    (problem,) = one.repository.problems
    assert problem.startswith(f"loan@1 could not be fetched: there is no loan/1/{artefact.file}")


def test_a_file_outside_of_its_folder_is_not_asked_for(published: S3, tmp_path: Path) -> None:
    text = (LOAN / "manifest.yaml").read_text()
    artefact = read_manifest(LOAN)[0].artefact
    published.put("production/loan/1/manifest.yaml", text.replace(artefact.file, "../../secret.onnx").encode())
    (refused,) = registry(tmp_path).fetch()

    assert isinstance(refused, Unfetched)
    assert "must lie inside its folder" in str(refused.error)


@pytest.mark.parametrize(("bound", "value"), [("MOST_BYTES", 100), ("SPARE_BYTES", 2**62)])
def test_a_file_beyond_the_bounds_is_not_fetched(
    published: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(fetching, bound, value)
    (refused,) = registry(tmp_path).fetch()

    assert isinstance(refused, Unfetched)
    assert "at most 100" in str(refused.error) or "make room" in str(refused.error)
    assert not [*(tmp_path / "versions").glob("*/loan")]


def test_an_address_that_is_a_version_folder_itself(s3: S3, tmp_path: Path) -> None:
    s3.publish(LOAN, "alone")
    one = registry(tmp_path, "s3://models/alone")

    assert one.names() == [("loan", "1")]
    assert [place.parts[-2:] for place in one.fetch() if isinstance(place, Path)] == [("loan", "1")]


def test_neither_sentences_nor_the_log_hold_credentials(
    published: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@127.0.0.1:9")
    one = registry(tmp_path, "s3://key:secret@models/production?token=secret")
    with caplog.at_level(logging.DEBUG, "answerable"):
        one.start()

    assert "secret" not in "".join([one.shown, *one.problems, caplog.text])
    assert len(one.problems) == 1


def test_the_same_from_a_mounted_folder(tmp_path: Path) -> None:
    shutil.copytree(LOAN, tmp_path / "models" / "loan" / "1")
    (place,) = registry(tmp_path / "data", (tmp_path / "models").as_uri()).fetch()

    assert isinstance(place, Path)
    assert (place / "manifest.yaml").read_bytes() == (LOAN / "manifest.yaml").read_bytes()
    with pytest.raises(CatalogError, match="there is nothing at"):
        registry(tmp_path / "data", (tmp_path / "elsewhere").as_uri()).fetch()

"""Which verdicts the repository takes, and that nothing it is told is lost; the engine and the checks are stand-ins."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.catalog import staging
from service.catalog.assessments import ASSESSMENTS, Assessment, Assessments, keep_beside
from service.catalog.baselines import BASELINES, KeptSet, KeptSets
from service.catalog.calibrations import Calibration
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import read_manifest
from service.catalog.traits import Traits
from service.catalog.versions import Catalog
from service.domain import ChunkShapes, VersionRef
from service.engine.protocol import Loaded, Source, Stats
from service.errors import LoadRefused
from service.lifecycle.checking.background import Checker
from service.lifecycle.serving.registries.registry import FolderRegistry
from service.lifecycle.serving.repository import Repository, read_catalog
from tests.conftest import MODELS
from tests.engine.stand_in import StandIn

if TYPE_CHECKING:
    from tests.conftest import Until

LOAN = MODELS / "loan" / "1"
TRAITS = Traits(TabularInputs.axes, (38,), 2, None, ("relu",), True, False, "minimum")


@dataclass(slots=True)
class LoadsAll(StandIn):
    """An engine that loads whatever it is given, once it may."""

    environment: dict[str, str] = field(default_factory=lambda: {"answerable": "test"})
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    loading: int = 0
    detached: list[str] = field(default_factory=list)

    def stats(self) -> Stats:
        return Stats(self.environment, True, 1, 0, {})

    async def load(self, version: VersionRef, source: Source, *_: Any, **__: Any) -> Loaded:
        self.loading += 1
        await self.is_open.wait()
        self.loading -= 1
        key, digest = read_manifest(source.folder)[1:]
        assert (version.name, version.version, version.digest) == (key.name, key.version, digest)
        environment = {"dtype": "float64", "transformers": "5"}
        return Loaded(key, {}, Calibration(ChunkShapes(1, 1)), TRAITS, 0.0, environment=environment)

    async def attach(self, *_: Any) -> dict[Any, Any]:
        self.loading += 1
        await self.is_open.wait()
        self.loading -= 1
        return {}

    def detach(self, digest: str) -> None:
        self.detached.append(digest)

    def unload(self, version: VersionRef) -> None:
        pass


class Checks(Checker):
    """Keeps a verdict for whatever is to be checked, and remembers what was compared with what."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.kept = Assessments(data / ASSESSMENTS)
        self.failed: tuple[str, ...] = ()
        self.asked: list[tuple[str, str | None]] = []

    async def check(self, folder: Path, against: Path | None) -> None:
        self.asked.append((folder.name, None if against is None else against.name))
        self.kept.keep(verdict(folder, against, self.failed))


def verdict(folder: Path, against: Path | None, failed: tuple[str, ...] = ()) -> Assessment:
    _, key, manifest = read_manifest(folder)
    made = Assessment(key.name, key.version, key.digest, manifest, None, failed, (), {}, None)
    if against is None:
        return made
    _, other, its_manifest = read_manifest(against)
    return replace(made, against=str(other), against_files=(other.digest, its_manifest))


@dataclass(slots=True)
class UnderTest:
    repository: Repository
    catalog: Catalog
    engine: LoadsAll
    checks: Checks

    @property
    def default_version(self) -> str | None:
        """The number of the version that answers where none is named."""
        default = self.catalog.default_version("loan")
        return None if default is None else default.key.version


Start = Callable[[], Any]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Version 1, with a verdict."""
    write(tmp_path / "models", "1")
    keep_beside(tmp_path / "models" / "loan" / "1", verdict(tmp_path / "models" / "loan" / "1", None))
    return tmp_path / "models"


def write(models: Path, version: str, title: str = "Mortgage application decision") -> Path:
    """A version of the loan model, over what is there of it."""
    folder = models / "loan" / version
    shutil.copytree(LOAN, folder, dirs_exist_ok=True)
    (folder / "check.json").unlink()
    path = folder / "manifest.yaml"
    text = path.read_text().replace('version: "1"', f'version: "{version}"', 1)
    path.write_text(text.replace("Mortgage application decision", title, 1))
    return folder


@pytest.fixture
def start(models: Path, tmp_path: Path) -> Start:
    async def started() -> UnderTest:
        data, catalog, engine = tmp_path / "data", read_catalog(FolderRegistry(models)), LoadsAll()
        checks = Checks(data)
        engine.is_open.set()
        repository = Repository(FolderRegistry(models), data, catalog, engine, lambda *_: None, checker=checks)
        await repository.start()
        return UnderTest(repository, catalog, engine, checks)

    return started


async def test_an_environment_is_that_of_the_engine_and_of_the_version(start: Start) -> None:
    one = await start()
    served = one.catalog.find("loan", "1")
    assert served.environment == {"answerable": "test", "dtype": "float64", "transformers": "5"}


async def test_a_verdict_without_a_comparison_moves_no_name(start: Start, models: Path, until: Until) -> None:
    one = await start()
    second = write(models, "2")
    keep_beside(second, verdict(second, None))
    one.checks.failed = ("flips",)
    await one.repository.load("loan", "2")

    assert one.default_version == "1"
    await until(lambda: bool(one.catalog.find("loan", "2").has_failed))
    assert one.checks.asked == [("2", "1")]
    assert one.default_version == "1"


async def test_a_verdict_against_a_version_that_was_replaced_moves_no_name(
    start: Start, models: Path, until: Until
) -> None:
    second = write(models, "2")
    keep_beside(second, verdict(second, models / "loan" / "1"))
    first = write(models, "1", title="Another")
    keep_beside(first, verdict(first, None))
    one = await start()

    assert one.default_version == "1"
    await until(lambda: one.default_version == "2")
    assert one.checks.asked == [("2", "1")]
    again = await start()
    assert again.default_version == "2"
    assert again.checks.asked == []


async def test_a_version_is_not_compared_with_one_that_failed(start: Start, models: Path, until: Until) -> None:
    one = await start()
    one.checks.failed = ("flips",)
    write(models, "2", title="Failing")
    await one.repository.load("loan", "2")
    await until(lambda: bool(one.catalog.find("loan", "2").has_failed))
    one.checks.failed = ()
    write(models, "3")
    await one.repository.load("loan", "3")
    await until(lambda: one.default_version == "3")

    assert one.checks.asked == [("2", "1"), ("3", "1")]


async def test_an_accepted_version_stays_when_what_it_was_compared_with_is_replaced(start: Start, models: Path) -> None:
    second = write(models, "2")
    keep_beside(second, verdict(second, models / "loan" / "1"))
    one = await start()
    first = write(models, "1", title="Another")
    keep_beside(first, verdict(first, None))
    await one.repository.load("loan", None)

    assert one.default_version == "2"
    assert one.checks.asked == []


async def test_what_is_unloaded_while_a_set_is_given_stays_unloaded(start: Start, until: Until) -> None:
    one = await start()
    version = one.catalog.find("loan", "1")
    one.engine.is_open.clear()
    keeping = asyncio.create_task(one.repository.sets.keep(version, "mine", [(0.0,) * 38], "", tenant="bank"))
    await until(lambda: bool(one.engine.loading))
    unloading = asyncio.create_task(one.repository.unload("loan", "1"))
    one.engine.is_open.set()
    await asyncio.gather(keeping, unloading, return_exceptions=True)

    (state,) = await one.repository.index()
    assert (state.state, state.reason) == ("UNAVAILABLE", "unloaded")


def keep_two_rows(data: Path) -> KeptSet:
    """A set of the loan model's, whose first row is a person's, of the token `a`."""
    manifest, key, _ = read_manifest(LOAN)
    rows = np.arange(76.0).reshape(2, 38)
    return KeptSets(data / BASELINES).keep(key, manifest, "mine", rows, "", subjects=("a", None))


def sets_of(catalog: Catalog) -> list[tuple[str, int, tuple[str, ...]]]:
    """Of each version the size of its sets, and what they were."""
    return [(str(one.key), kept.size, kept.erased) for one in catalog.known for kept in one.kept_sets]


async def test_rows_of_people_who_were_erased_while_the_service_was_down_are_not_served(
    models: Path, tmp_path: Path
) -> None:
    kept, engine = keep_two_rows(tmp_path / "data"), LoadsAll()
    engine.is_open.set()
    catalog = read_catalog(FolderRegistry(models))
    checks = Checks(tmp_path / "data")
    repository = Repository(
        FolderRegistry(models), tmp_path / "data", catalog, engine, lambda *_: None, lambda: {"a"}, checks
    )
    await repository.start()

    assert sets_of(catalog) == [("loan@1", 1, (kept.digest,))]


async def test_rows_of_people_who_are_erased_while_the_service_starts_are_taken_back(
    models: Path, tmp_path: Path, until: Until
) -> None:
    class OneByOne(LoadsAll):
        async def attach(self, *_: Any) -> dict[Any, Any]:
            self.is_open.clear()  # the next version waits
            return {}

    write(models, "2")
    kept, engine, gone = keep_two_rows(tmp_path / "data"), OneByOne(), set[str]()
    engine.is_open.set()
    catalog = read_catalog(FolderRegistry(models))
    checks = Checks(tmp_path / "data")
    repository = Repository(
        FolderRegistry(models), tmp_path / "data", catalog, engine, lambda *_: None, lambda: gone, checks
    )
    starting = asyncio.create_task(repository.start())
    await until(lambda: bool(sets_of(catalog) and engine.loading))

    gone.add("a")
    await repository.sets.forget_rows()

    assert engine.detached == [kept.digest]
    assert sets_of(catalog) == []
    engine.is_open.set()
    await starting
    assert sets_of(catalog) == [("loan@1", 1, (kept.digest,)), ("loan@2", 1, (kept.digest,))]


async def test_files_that_were_replaced_and_are_still_meant_lose_a_set_too(start: Start, models: Path) -> None:
    one = await start()
    kept = await one.repository.sets.keep(one.catalog.find("loan", "1"), "mine", [(0.0,) * 38], "", tenant="bank")
    one.checks.failed = ("completeness",)
    write(models, "1", title="Another")
    await one.repository.load("loan", "1")
    assert len(sets_of(one.catalog)) == 2

    await one.repository.sets.remove(kept)

    assert one.engine.detached == [kept.digest]
    assert all(size == 0 for _, size, _ in sets_of(one.catalog))


async def test_a_version_in_a_folder_that_is_a_link(start: Start, models: Path, tmp_path: Path) -> None:
    second = write(models, "2")
    second.rename(tmp_path / "elsewhere")
    second.symlink_to(tmp_path / "elsewhere")
    one = await start()

    assert one.catalog.find("loan", "2").folder.parts[-2:] == ("loan", "2")


async def test_what_cannot_be_read_is_refused_without_a_path(start: Start, models: Path) -> None:
    one = await start()
    path = models / "loan" / "1" / "manifest.yaml"
    path.unlink()
    path.mkdir()

    with pytest.raises(LoadRefused) as refusal:
        await one.repository.load("loan", "1")
    assert "Is a directory" in str(refusal.value)
    assert str(models) not in str(refusal.value)


async def test_what_is_wrong_with_a_manifest_is_told_in_one_line(start: Start, models: Path) -> None:
    one = await start()
    path = models / "loan" / "1" / "manifest.yaml"
    path.write_text(path.read_text() + "\nzodiac: a-secret\n")

    with pytest.raises(LoadRefused) as refusal:
        await one.repository.load("loan", "1")
    assert str(refusal.value) == "loan@1: loan/1/manifest.yaml: zodiac is not a known field"


async def test_a_version_that_cannot_be_copied_is_not_taken_for_what_is_served(
    start: Start, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start()
    write(models, "1", title="Another")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy", full)
    with pytest.raises(LoadRefused, match="No space left on device"):
        await one.repository.load("loan", "1")
    assert one.catalog.find("loan", "1").manifest.title == "Mortgage application decision"

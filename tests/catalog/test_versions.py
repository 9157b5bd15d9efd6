"""Which version a name means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.catalog.manifest import read_manifest
from service.catalog.versions import Catalog, ModelVersion
from service.errors import ModelNotReady, NotFound

LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"


@pytest.fixture
def make() -> Callable[..., ModelVersion]:
    manifest, key, digest = read_manifest(LOAN)

    def made(number: str, *, ready: bool = True, problem: str | None = None) -> ModelVersion:
        environment = {"device": "cpu"} if ready else None
        return ModelVersion(replace(key, version=number), manifest, LOAN, digest, environment, problem=problem)

    return made


def test_the_newest_ready_version_is_meant(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1"), make("2"), make("10", ready=False)):
        catalog.put(version)

    assert catalog.find("loan").key.version == "2"
    assert catalog.find("loan", "1").key.version == "1"
    catalog.put(make("10"))
    assert catalog.find("loan").key.version == "10"
    assert [version.key.version for version in catalog.versions("loan")] == ["1", "2", "10"]


def test_what_is_not_there(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    with pytest.raises(NotFound):
        catalog.find("loan")
    catalog.put(make("1"))
    for name, version in (("loan", "2"), ("other", None), ("../loan", None), ("loan", "../1"), ("loan", "")):
        with pytest.raises(NotFound):
            catalog.find(name, version)


def test_what_is_there_and_not_ready(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    catalog.put(make("1", ready=False))
    with pytest.raises(ModelNotReady, match="yet"):
        catalog.find("loan")
    catalog.put(make("1", ready=False, problem="a secret path"))
    with pytest.raises(ModelNotReady) as refusal:
        catalog.find("loan", "1")
    assert "secret" not in str(refusal.value)

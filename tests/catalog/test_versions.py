"""Which version a name means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from service.catalog.assessments import Assessment
from service.catalog.manifest import read_manifest
from service.catalog.versions import Catalog, Lease, ModelVersion
from service.errors import ModelNotReady, NotFound
from tests.conftest import MODELS

LOAN = MODELS / "loan" / "1"


@pytest.fixture
def make() -> Callable[..., ModelVersion]:
    manifest, key, digest = read_manifest(LOAN)

    def made(
        number: str,
        *,
        ready: bool = True,
        problem: str | None = None,
        passed: bool | None = None,
        artefact: str = key.digest,
    ) -> ModelVersion:
        named = replace(key, version=number, digest=artefact)
        verdict = Assessment("loan", number, artefact, digest, None, () if passed else ("flips",), (), {}, None)
        return ModelVersion(
            named,
            manifest,
            LOAN,
            digest,
            {"device": "cpu"} if ready else None,
            problem=problem,
            assessment=None if passed is None else verdict,
        )

    return made


def test_a_name_means_the_newest_version_that_has_passed(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1", passed=True), make("10", ready=False), make("2", passed=True), make("9")):
        catalog.put(version)

    assert catalog.find("loan").key.version == "2"
    assert catalog.find("loan", "9").key.version == "9"
    catalog.put(make("10", passed=False))
    assert catalog.find("loan").key.version == "2"
    catalog.put(make("10", passed=True))
    assert catalog.find("loan").key.version == "10"
    assert [version.key.version for version in catalog.versions("loan")] == ["1", "2", "9", "10"]


def test_before_any_has_passed_a_name_means_the_oldest_ready_version(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1", ready=False, problem="spoilt"), make("3"), make("4")):
        catalog.put(version)
    assert catalog.find("loan").key.version == "3"

    catalog.put(make("4", passed=True))
    assert catalog.find("loan").key.version == "4"


def test_a_version_that_failed_answers_only_when_it_is_named(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1", passed=False), make("2")):
        catalog.put(version)

    assert catalog.find("loan", "1").key.version == "1"
    with pytest.raises(ModelNotReady, match="passed its check"):
        catalog.find("loan")


def test_other_files_of_the_same_version_are_meant_once_they_have_passed(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1", passed=True), make("2", passed=True), make("2", artefact="sha256:other")):
        catalog.put(version)
    assert catalog.find("loan").key.digest == make("2").key.digest
    assert catalog.find("loan", "2").key.digest == "sha256:other"

    catalog.put(make("2", passed=False, artefact="sha256:other"))
    assert catalog.find("loan").key.digest == make("2").key.digest
    catalog.put(make("2", passed=True, artefact="sha256:third"))
    assert catalog.find("loan").key.digest == "sha256:third"


def test_replaced_files_are_known_while_they_are_meant(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    old, new = make("1", passed=True), replace(make("1", artefact="sha256:1"), manifest_digest="sha256:1")
    catalog.put(old)
    assert catalog.known == [old]
    catalog.put(new)
    assert catalog.known == [new, old]
    passed = replace(make("1", artefact="sha256:1", passed=True), manifest_digest="sha256:1")
    catalog.put(passed)
    assert catalog.known == [passed]


def test_what_is_unloaded_is_meant_no_more_and_is_no_fault(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    for version in (make("1", passed=True), make("2", passed=True), make("2", artefact="sha256:other")):
        catalog.put(version)
    catalog.put(replace(make("2", artefact="sha256:other"), environment=None, is_unloaded=True))

    assert catalog.find("loan").key.version == "1"
    assert catalog.is_ready
    catalog.put(replace(make("1"), environment=None, is_unloaded=True))
    with pytest.raises(ModelNotReady, match="not loaded"):
        catalog.find("loan")


def test_a_name_that_meant_a_checked_version_means_no_unchecked_one_afterwards(
    make: Callable[..., ModelVersion],
) -> None:
    catalog = Catalog()
    for version in (make("1", passed=True), make("2", passed=True), make("1", artefact="sha256:other")):
        catalog.put(version)
    catalog.put(replace(make("2"), environment=None, is_unloaded=True))

    with pytest.raises(ModelNotReady, match="passed its check"):
        catalog.find("loan")
    catalog.put(make("1", passed=True, artefact="sha256:other"))
    assert catalog.find("loan").key.digest == "sha256:other"


def test_a_version_is_compared_with_what_the_name_means(make: Callable[..., ModelVersion]) -> None:
    catalog = Catalog()
    first, failed, reloaded = make("1", passed=True), make("2", passed=False), make("1", artefact="sha256:other")
    catalog.put(first)
    assert catalog.predecessor(first) is None
    for version in (failed, make("3"), reloaded):
        catalog.put(version)

    assert catalog.predecessor(make("3")) is first
    assert catalog.predecessor(reloaded) is first
    third = make("3", passed=True)
    catalog.put(third)
    assert catalog.predecessor(third) is None  # what it was compared with is no longer served
    assert catalog.predecessor(make("4")) is third
    assert catalog.predecessor(reloaded) is None


def test_a_version_is_let_go_when_nobody_holds_it_any_more(make: Callable[..., ModelVersion]) -> None:
    ended: list[str] = []
    catalog = Catalog()
    catalog.put(replace(make("1"), lease=Lease(lambda: ended.append("first"))))
    request = catalog.find("loan")
    catalog.put(replace(make("1", artefact="sha256:other"), lease=Lease(lambda: ended.append("second"))))
    again = replace(catalog.find("loan"), assessment=None)

    assert ended == []
    assert again.key.digest == "sha256:other"
    del request
    assert ended == ["first"]


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

"""Manifests and the files they name: what is refused, and in which order versions come."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import find_versions, read_manifest
from service.catalog.plain_yaml import read_yaml
from service.catalog.version_files import read_baseline_rows, read_verified
from service.errors import CatalogError
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.conftest import Version

Change = Callable[[dict[str, Any]], object]


def test_the_loan_model_is_whole(version: Version) -> None:
    manifest, key, digest = read_manifest(version.folder)
    assert str(key) == "loan@1"
    assert digest.startswith("sha256:")
    assert key.digest == "sha256:" + manifest.artefact.sha256
    assert read_verified(version.folder, manifest.artefact.file, manifest.artefact.sha256)
    for baseline in manifest.baselines:
        rows = read_baseline_rows(version.folder, manifest, baseline)
        assert rows.shape == (baseline.size, prod(manifest.inputs.shape))


CHANGES: dict[str, Change] = {
    "unknown field": lambda m: m.update(surprise=1),
    "unknown field deep down": lambda m: m["inputs"]["features"][0].update(surprise=1),
    "no artefact": lambda m: m.pop("artefact"),
    "a name with a slash": lambda m: m.update(name="lo/an"),
    "another name": lambda m: m.update(name="other"),
    "another version": lambda m: m.update(version="2"),
    "a version that is a number": lambda m: m.update(version=1),
    "artefact above the folder": lambda m: m["artefact"].update(file="../model.onnx"),
    "artefact far above": lambda m: m["artefact"].update(file="baselines/../../model.onnx"),
    "absolute artefact": lambda m: m["artefact"].update(file="/etc/passwd"),
    "windows path": lambda m: m["artefact"].update(file="..\\model.onnx"),
    "no path": lambda m: m["artefact"].update(file=""),
    "the folder itself": lambda m: m["artefact"].update(file="."),
    "baseline above the folder": lambda m: m["baselines"][0].update(file="../x.safetensors"),
    "digest too short": lambda m: m["artefact"].update(sha256="abc"),
    "digest in capitals": lambda m: m["artefact"].update(sha256=m["artefact"]["sha256"].upper() + "A"),
    "two features of one name": lambda m: m["inputs"]["features"].append(m["inputs"]["features"][0]),
    "range with NaN": lambda m: m["inputs"]["features"][0].update(range=[0, float("nan")]),
    "two baseline sets of one name": lambda m: m["baselines"].append(m["baselines"][0]),
    "unknown default baseline": lambda m: m["defaults"].update(baseline="nothing"),
    "unknown adverse label": lambda m: m["outputs"].update(adverse="nothing"),
    "one output space": lambda m: m["outputs"]["tensors"].pop("logit"),
    "incomplete example": lambda m: m["example"].pop("loan_amount"),
    "tolerance of zero": lambda m: m["defaults"].update(tolerance=0),
    "no baseline": lambda m: m.update(baselines=[]),
    "two labels of one name": lambda m: m["outputs"].update(labels=["repaid", "repaid"], adverse=None),
    "a label named as whatever is predicted": lambda m: m["outputs"].update(labels=["predicted", "x"], adverse=None),
    "a label without a name": lambda m: m["outputs"].update(labels=["", "x"], adverse=None),
    "a range that overflows": lambda m: m["inputs"]["features"][0].update(range=[-1e300, 1e300]),
    "a range from more to less": lambda m: m["inputs"]["features"][0].update(range=[5, 1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_wrong_manifest_is_refused_with_a_sentence(version: Version, change: Change) -> None:
    version.edit(change)
    with pytest.raises(CatalogError, match=r"loan/1/manifest\.yaml"):
        read_manifest(version.folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a list",
        b"- 1\n",
        b"\xff\xfe\x00",
        b"{unclosed: [",
        b"!!python/object/apply:os.system ['touch canary']",
        b"a: &a [*a]\n",
        b"\x00",
    ],
    ids=["empty", "text", "list", "not utf-8", "unclosed", "python object", "recursive", "zero byte"],
)
def test_what_is_no_manifest_is_refused(
    version: Version, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (version.folder / "manifest.yaml").write_bytes(content)
    with pytest.raises(CatalogError):
        read_manifest(version.folder)
    assert not (tmp_path / "canary").exists()


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (LAUGHS, "more than 2000000 values"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("{a: " * 100_000, "nested deeper"),
        ("a: &a [*a]", r"\*a stands for nothing, or for what holds it"),
        ("a: *b", r"\*b stands for nothing"),
        ("name: loan\nname: other", "line 2, column 1: 'name' is there twice"),
        ("inputs: {kind: image, 'kind': tokens}", "'kind' is there twice"),
        ("? [a]\n: 1", "a key must be a text"),
        ("version: !!timestamp x", "the tag .* is not taken"),
        ("version: 2026-99-99", "cannot be read: month"),
        ("version: " + "1" * 5000, "cannot be read"),
        ("name: " + "x" * 2**24, "at most 16777216 are read"),
    ],
)
def test_yaml_that_would_stop_whoever_reads_it_is_refused(version: Version, content: str, detail: str) -> None:
    (version.folder / "manifest.yaml").write_text(content)
    with pytest.raises(CatalogError, match=rf"loan/1/manifest\.yaml: .*{detail}"):
        read_manifest(version.folder)


def test_what_is_written_once_and_meant_twice_is_read(version: Version) -> None:
    """As a dump has it of a list that is in two places."""
    shared = [0.0, 1e6]
    version.edit(lambda m: [feature.update(range=shared) for feature in m["inputs"]["features"][:2]])
    assert "*id001" in (version.folder / "manifest.yaml").read_text()
    inputs = read_manifest(version.folder)[0].inputs
    assert isinstance(inputs, TabularInputs)
    assert [feature.range for feature in inputs.features[:2]] == [(0.0, 1e6)] * 2


def test_no_manifest_and_a_folder_in_its_place(version: Version) -> None:
    (version.folder / "manifest.yaml").unlink()
    with pytest.raises(CatalogError):
        read_manifest(version.folder)
    (version.folder / "manifest.yaml").mkdir()
    with pytest.raises(CatalogError):
        read_manifest(version.folder)


def test_one_byte_more_is_another_file(version: Version) -> None:
    manifest, _, _ = read_manifest(version.folder)
    with (version.folder / "model.onnx").open("ab") as artefact:
        artefact.write(b"\0")
    with pytest.raises(CatalogError, match="sha256"):
        read_verified(version.folder, "model.onnx", manifest.artefact.sha256)


def test_links_are_not_followed(version: Version, tmp_path: Path) -> None:
    manifest, _, _ = read_manifest(version.folder)
    artefact, digest = version.folder / "model.onnx", manifest.artefact.sha256
    outside = tmp_path / "outside.onnx"
    shutil.move(artefact, outside)
    artefact.symlink_to(outside)
    with pytest.raises(CatalogError, match="plain file"):
        read_verified(version.folder, "model.onnx", digest)

    artefact.unlink()
    (version.folder / "inner.onnx").write_bytes(outside.read_bytes())
    artefact.symlink_to("inner.onnx")
    with pytest.raises(CatalogError, match="plain file"):
        read_verified(version.folder, "model.onnx", digest)


def test_a_folder_that_leads_outside_is_not_entered(version: Version, tmp_path: Path) -> None:
    manifest, _, _ = read_manifest(version.folder)
    outside = tmp_path / "outside"
    shutil.move(version.folder / "baselines", outside)
    (version.folder / "baselines").symlink_to(outside, target_is_directory=True)
    for baseline in manifest.baselines:
        with pytest.raises(CatalogError, match="plain file"):
            read_baseline_rows(version.folder, manifest, baseline)


def test_what_is_no_file_is_refused(version: Version) -> None:
    manifest, _, _ = read_manifest(version.folder)
    for file in ("baselines", "nothing", "manifest.yaml/model.onnx"):
        with pytest.raises(CatalogError):
            read_verified(version.folder, file, manifest.artefact.sha256)


ROWS = np.zeros((128, 38), dtype=np.float32)
CONTENTS: dict[str, bytes] = {
    "too few rows": save({"rows": ROWS[:-1]}),
    "too few features": save({"rows": np.ascontiguousarray(ROWS[:, :-1])}),
    "one dimension": save({"rows": ROWS[:, 0].copy()}),
    "another name": save({"values": ROWS}),
    "float16": save({"rows": ROWS.astype(np.float16)}),
    "integers": save({"rows": ROWS.astype(np.int32)}),
    "NaN": save({"rows": np.full_like(ROWS, np.nan)}),
    "infinity": save({"rows": np.full_like(ROWS, np.inf)}),
    "no safetensors": b"rows",
    "empty": b"",
    "header too long": b"\xff" * 8 + b"{}",
    "truncated": save({"rows": ROWS})[:-1],
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_baseline_set_that_is_not_what_the_manifest_says(version: Version, content: bytes) -> None:
    manifest, _, _ = read_manifest(version.folder)
    (version.folder / manifest.baselines[0].file).write_bytes(content)
    with pytest.raises(CatalogError, match="sha256"):
        read_baseline_rows(version.folder, manifest, manifest.baselines[0])
    version.sign()
    manifest, _, _ = read_manifest(version.folder)
    with pytest.raises(CatalogError):
        read_baseline_rows(version.folder, manifest, manifest.baselines[0])


def test_versions_come_in_their_order(tmp_path: Path) -> None:
    for name, version in (
        ("b", "1"),
        ("a", "10"),
        ("a", "beta"),
        ("a", "2"),
        ("a", "1"),
        ("a", "alpha"),
        ("a", "9"),
    ):
        folder = tmp_path / name / version
        folder.mkdir(parents=True)
        (folder / "manifest.yaml").touch()
    (tmp_path / "a" / "no manifest").mkdir()
    (tmp_path / "a" / "manifest.yaml").touch()

    found = [f"{folder.parent.name}/{folder.name}" for folder in find_versions(tmp_path)]
    assert found == ["a/1", "a/2", "a/9", "a/10", "a/alpha", "a/beta", "b/1"]


def test_no_folder_has_no_versions(tmp_path: Path) -> None:
    assert find_versions(tmp_path / "nothing") == []


def test_manifests_are_read_as_pyyaml_reads_them() -> None:
    for path in MODELS.glob("*/*/manifest.yaml"):
        assert read_yaml(path.read_bytes()) == yaml.safe_load(path.read_bytes())
    with pytest.raises(ValueError, match="tag"):
        read_yaml(b"a: !!python/object/apply:os.getcwd []")


def test_a_manifest_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "1"
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CatalogError, match="nested deeper"):
        read_manifest(folder)

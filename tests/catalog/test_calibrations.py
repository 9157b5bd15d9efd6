"""Chunk shapes kept over a restart."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from service.catalog.calibrations import Calibration, Calibrations
from service.domain import ChunkShapes, ModelKey

LOAN = ModelKey("loan", "1", "sha256:aa")
HERE = {"torch": "2.13.0", "device": "this one"}
CALIBRATION = Calibration(ChunkShapes(128, 2048))
OF_LENGTHS = Calibration(ChunkShapes(1, 1), (ChunkShapes(2, 16, 16, graded=True), ChunkShapes(2, 4, 64, graded=True)))
"""Of a large network, with others for shorter rows."""


def test_shapes_are_found_again_for_the_same_model_and_environment(tmp_path: Path) -> None:
    Calibrations(tmp_path / "new").keep(LOAN, HERE, CALIBRATION)
    again = Calibrations(tmp_path / "new")
    assert again.find(LOAN, dict(reversed(HERE.items()))) == CALIBRATION
    assert again.find(ModelKey("loan", "1", "sha256:bb"), HERE) is None
    assert again.find(LOAN, {**HERE, "torch": "2.14.0"}) is None


def test_later_shapes_replace_earlier_ones(tmp_path: Path) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.keep(LOAN, HERE, CALIBRATION)
    for calibration in (Calibration(ChunkShapes(64, 64)), OF_LENGTHS):
        calibrations.keep(LOAN, HERE, calibration)
        assert calibrations.find(LOAN, HERE) == calibration
    assert len(list(tmp_path.iterdir())) == 1


WHOLE = {"brief": 1, "long": 1, "length": None, "graded": False}
CUT = [{"brief": 2, "long": long, "length": length, "graded": True} for length, long in ((16, 16), (64, 4))]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"brief": 64, "long": 512}, Calibration(ChunkShapes(64, 512))),
        ({**WHOLE, "cut": CUT}, OF_LENGTHS),
        ({**WHOLE, "cut": [{**shapes, "cut": []} for shapes in CUT]}, OF_LENGTHS),
    ],
)
def test_files_of_earlier_releases_are_read(tmp_path: Path, rows: object, expected: Calibration) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.keep(LOAN, HERE, OF_LENGTHS)
    (file,) = tmp_path.iterdir()
    assert orjson.loads(file.read_bytes())["rows"] == {**WHOLE, "cut": CUT}
    file.write_bytes(orjson.dumps({"rows": rows}))
    assert calibrations.find(LOAN, HERE) == expected


@pytest.mark.parametrize("content", ["", "null", "[]", '{"rows": 3}', '{"rows": {"brief": 1}}', '{"rows": {"x": 1}}'])
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.keep(LOAN, HERE, CALIBRATION)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert calibrations.find(LOAN, HERE) is None

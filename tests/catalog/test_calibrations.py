"""Chunk shapes kept over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.catalog.calibrations import Calibrations
from service.domain import ChunkShapes, ModelKey

LOAN = ModelKey("loan", "1", "sha256:aa")
HERE = {"torch": "2.13.0", "device": "this one"}
SHAPES = ChunkShapes(128, 2048)
OF_LENGTHS = ChunkShapes(1, 1, cut=(ChunkShapes(2, 16, 16, graded=True), ChunkShapes(2, 4, 64, graded=True)))
"""Of a large network, with others for shorter rows."""


def test_shapes_are_found_again_for_the_same_model_and_environment(tmp_path: Path) -> None:
    Calibrations(tmp_path / "new").keep(LOAN, HERE, SHAPES)
    again = Calibrations(tmp_path / "new")
    assert again.find(LOAN, dict(reversed(HERE.items()))) == SHAPES
    assert again.find(ModelKey("loan", "1", "sha256:bb"), HERE) is None
    assert again.find(LOAN, {**HERE, "torch": "2.14.0"}) is None


def test_later_shapes_replace_earlier_ones(tmp_path: Path) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.keep(LOAN, HERE, SHAPES)
    for shapes in (ChunkShapes(64, 64), OF_LENGTHS):
        calibrations.keep(LOAN, HERE, shapes)
        assert calibrations.find(LOAN, HERE) == shapes
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "null", "[]", '{"rows": 3}', '{"rows": {"brief": 1}}', '{"rows": {"x": 1}}'])
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    calibrations = Calibrations(tmp_path)
    calibrations.keep(LOAN, HERE, SHAPES)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert calibrations.find(LOAN, HERE) is None

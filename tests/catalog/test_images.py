"""Image files: what Pillow wrote is read back, what is no image, damaged or too large is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.catalog.images import MOST_PIXELS, decode
from service.catalog.manifest import ImageInputs
from service.errors import InvalidRequest

GREY = ImageInputs(kind="image", tensor="image", shape=(1, 4, 6), range=(0, 255))
COLOUR = ImageInputs(kind="image", tensor="image", shape=(3, 4, 6), range=(0, 1))


def file(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> str:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, **options)
    return base64.b64encode(written.getvalue()).decode()


def random(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grey_levels_are_read_as_they_were_written() -> None:
    pixels = random(4, 6)
    np.testing.assert_array_equal(decode(GREY, file(pixels)), pixels[None])


def test_colours_are_stretched_over_the_range_channel_by_channel() -> None:
    pixels = random(4, 6, 3)
    np.testing.assert_allclose(decode(COLOUR, file(pixels)), pixels.transpose(2, 0, 1) / 255)


def test_normalisation_is_the_manifests() -> None:
    pixels = random(4, 6, 3)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalise = {"mean": mean, "deviation": deviation}
    inputs = ImageInputs.model_validate(COLOUR.model_dump() | {"normalise": normalise})
    expected = (pixels / 255 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(decode(inputs, file(pixels)), expected.transpose(2, 0, 1))


def test_a_jpeg_is_nearly_what_was_written() -> None:
    smooth = np.tile(np.linspace(0, 200, 6).astype(np.uint8), (4, 1))
    assert np.abs(decode(GREY, file(smooth, "JPEG", quality=95))[0] - smooth).max() < 12


def test_another_size_is_refused_or_resized() -> None:
    large = np.full((40, 60), 77, dtype=np.uint8)
    with pytest.raises(InvalidRequest, match="60 by 40 pixels, the model takes 6 by 4"):
        decode(GREY, file(large))
    resized = GREY.model_copy(update={"resize": "bilinear"})
    np.testing.assert_array_equal(decode(resized, file(large)), np.full((1, 4, 6), 77))


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (33, 33), (9, 200)])
def test_the_shorter_side_is_resized_and_the_middle_cut_out_as_torchvision_does(height: int, width: int) -> None:
    """Its Resize and CenterCrop, written down again: the longer side is cut off to whole pixels."""
    inputs = ImageInputs.model_validate(COLOUR.model_dump() | {"resize": "bicubic", "shorter_side": 8})
    pixels = random(height, width, 3)
    shorter = min(height, width)
    size = (8, int(8 * height / width)) if width == shorter else (int(8 * width / height), 8)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (round((extent - own) / 2.0) for extent, own in zip(resized.shape[:2], (4, 6), strict=True))
    expected = resized[top : top + 4, left : left + 6]
    np.testing.assert_allclose(decode(inputs, file(pixels)), expected.transpose(2, 0, 1) / 255)


def test_what_is_cut_out_must_fit() -> None:
    with pytest.raises(ValidationError, match="shorter_side"):
        ImageInputs.model_validate(COLOUR.model_dump() | {"resize": "bicubic", "shorter_side": 5})
    with pytest.raises(ValidationError, match="shorter_side"):
        ImageInputs.model_validate(COLOUR.model_dump() | {"shorter_side": 8})


def test_a_thread_of_pixels_does_not_grow_without_bounds() -> None:
    """One pixel high, its other side would become a million times as long as the model's."""
    inputs = ImageInputs.model_validate(COLOUR.model_dump() | {"resize": "nearest", "shorter_side": 224})
    with pytest.raises(InvalidRequest, match="by 1 pixels"):
        decode(inputs, file(random(1, 60_000, 3)))


def test_a_picture_with_a_palette_or_transparency_is_converted() -> None:
    pixels = random(4, 6, 3)
    with_alpha = np.concatenate([pixels, np.full((4, 6, 1), 255, dtype=np.uint8)], axis=2)
    np.testing.assert_allclose(decode(COLOUR, file(with_alpha)), pixels.transpose(2, 0, 1) / 255)


@pytest.mark.parametrize("content", ["", "not base64!", base64.b64encode(b"hello").decode(), "é"])
def test_what_is_no_image_file_is_refused(content: str) -> None:
    with pytest.raises(InvalidRequest, match="PNG or JPEG"):
        decode(GREY, content)


def test_other_formats_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="PNG or JPEG"):
        decode(GREY, file(random(4, 6), "GIF"))


def test_more_than_8_bits_are_refused_rather_than_cut_off() -> None:
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000
    with pytest.raises(InvalidRequest, match="8 bits"):
        decode(GREY, file(deep))


def test_a_bomb_is_refused_by_its_header() -> None:
    side = 60_000
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    assert side**2 > MOST_PIXELS
    with pytest.raises(InvalidRequest):
        decode(GREY.model_copy(update={"resize": "nearest"}), base64.b64encode(bomb).decode())


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused_but_never_an_error_of_ours(at: int, value: int) -> None:
    content = bytearray(base64.b64decode(file(random(4, 6))))
    content[at % len(content)] = value
    with contextlib.suppress(InvalidRequest):
        assert decode(GREY, base64.b64encode(bytes(content)).decode()).shape == (1, 4, 6)


def test_a_normalisation_has_a_number_a_channel() -> None:
    with pytest.raises(ValidationError, match="a channel"):
        ImageInputs.model_validate(COLOUR.model_dump() | {"normalise": {"mean": (0,), "deviation": (1,)}})

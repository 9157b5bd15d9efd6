"""Image files: what Pillow wrote is read back, what is no image, damaged or too large is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.image_files import MAX_PIXELS, decode, described
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


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel_are_refused_in_every_colour(colour: int, channels: int) -> None:
    """Pillow reads colours of 16 bits as 8, and says nothing: here all pixels would be equal."""
    pixels = np.arange(4 * 6 * channels, dtype=">u2").reshape(4, 6 * channels)
    header = (6).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    ends = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    deep = b"\x89PNG\r\n\x1a\n" + b"".join(ends)
    assert Image.open(io.BytesIO(deep)).size == (6, 4)
    with pytest.raises(InvalidRequest, match="more than 8 bits"):
        decode(COLOUR, base64.b64encode(deep).decode())


UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: np.rot90(seen, 2).transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen, 1),
}
"""What EXIF says of the rows and columns that are stored: which way they are shown."""


@pytest.mark.parametrize(("orientation", "upright"), UPRIGHT.items())
def test_a_photograph_is_turned_as_its_exif_says(
    orientation: int, upright: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    stored = random(6, 4, 3) if orientation > 4 else random(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = upright(stored).transpose(2, 0, 1)
    np.testing.assert_allclose(decode(COLOUR, file(stored, exif=exif)), expected / 255)


def see_through() -> NDArray[np.uint8]:
    """Whole, half and not to be seen, by columns; red is hidden under the last."""
    pixels = random(4, 6, 4)
    pixels[..., 3] = np.repeat([255, 128, 0], 2)
    pixels[:, 4:, :3] = [255, 0, 0]
    return pixels


def test_what_is_transparent_is_refused_or_laid_over_the_background_that_the_manifest_names() -> None:
    pixels = see_through()
    with pytest.raises(InvalidRequest, match="transparent in places"):
        decode(COLOUR, file(pixels))
    with pytest.raises(InvalidRequest, match="transparent in places"):
        decode(GREY, file(pixels))
    ground = np.array([0, 100, 200])
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + ground * (1 - alpha)
    found = decode(COLOUR.model_copy(update={"background": tuple(ground.tolist())}), file(pixels))
    np.testing.assert_allclose(found * 255, expected.transpose(2, 0, 1), atol=1)
    assert np.abs(found[:, :, 4:] * 255 - ground[:, None, None]).max() < 1e-9

    grey = decode(GREY.model_copy(update={"background": (50,)}), file(pixels))
    np.testing.assert_array_equal(grey[0, :, 4:], 50)


def test_transparency_of_a_palette_or_of_one_colour_is_transparency() -> None:
    indexed = Image.fromarray(np.repeat([[0, 1, 2, 0, 1, 2]], 4, axis=0).astype(np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    written = io.BytesIO()
    indexed.save(written, "PNG")
    whole = decode(COLOUR, base64.b64encode(written.getvalue()).decode())
    np.testing.assert_allclose(whole[:, 0, :3] * 255, [[10, 40, 70], [20, 50, 80], [30, 60, 90]])
    for image, key in ((indexed, 1), (indexed.convert("RGB"), (40, 50, 60))):
        written = io.BytesIO()
        image.save(written, "PNG", transparency=key)
        with pytest.raises(InvalidRequest, match="transparent"):
            decode(COLOUR, base64.b64encode(written.getvalue()).decode())


def test_a_model_with_a_channel_for_transparency_gets_it() -> None:
    inputs = ImageInputs(kind="image", tensor="image", shape=(4, 4, 6), range=(0, 255))
    np.testing.assert_array_equal(decode(inputs, file(see_through())), see_through().transpose(2, 0, 1))


def test_inks_are_converted_as_pillow_does() -> None:
    inks = np.full((4, 6, 4), [0, 255, 255, 0], dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(written, "JPEG", quality=100)
    found = decode(COLOUR, base64.b64encode(written.getvalue()).decode())
    np.testing.assert_allclose(found[:, 0, 0], [1, 0, 0], atol=0.02)


def test_what_becomes_of_a_file_is_said() -> None:
    assert described(COLOUR) == (
        "PNG or JPEG, 8 bits a channel; turned as its EXIF orientation says; made RGB; without colour profiles; "
        "transparent ones refused; 6 by 4 pixels or refused; then 0 to 255 stretched over the range 0 to 1, for the "
        "manifest has no `normalise`"
    )
    normalise = {"mean": (0.5, 0.5, 0.25), "deviation": (1, 2, 3)}
    changes = {"normalise": normalise, "resize": "bicubic", "shorter_side": 8, "background": (1, 2, 3)}
    full = described(ImageInputs.model_validate(COLOUR.model_dump() | changes))
    assert (
        "laid over 1, 2, 3 where it is transparent; its shorter side made 8 pixels (bicubic); the middle 6 by 4" in full
    )
    assert full.endswith("then (value / 255 - mean) / deviation, with mean 0.5, 0.5, 0.25; deviation 1, 2, 3")
    assert described(GREY.model_copy(update={"shape": (2, 4, 6)})).startswith("not taken: none has 2 channels")


def test_where_it_is_not_known_what_a_file_becomes_none_is_taken() -> None:
    inputs = COLOUR.model_copy(update={"takes_files": False})
    assert described(inputs).startswith("not taken")
    with pytest.raises(InvalidRequest, match="does not say how an image file becomes the model's numbers"):
        decode(inputs, file(random(4, 6, 3)))


@pytest.mark.parametrize("background", [(1, 2), (256, 0, 0), (1,)])
def test_a_background_is_a_colour(background: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        ImageInputs.model_validate(COLOUR.model_dump() | {"background": background})


def test_a_bomb_is_refused_by_its_header() -> None:
    side = 60_000
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])

    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    assert side**2 > MAX_PIXELS
    with pytest.raises(InvalidRequest):
        decode(GREY.model_copy(update={"resize": "nearest"}), base64.b64encode(bomb).decode())


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 700), st.integers(0, 255), st.sampled_from(["PNG", "JPEG"]))
def test_a_damaged_file_is_read_or_refused_but_never_an_error_of_ours(at: int, value: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = bytearray(base64.b64decode(file(random(4, 6), kind, exif=exif)))
    content[at % len(content)] = value
    with contextlib.suppress(InvalidRequest):
        assert decode(GREY, base64.b64encode(bytes(content)).decode()).shape == (1, 4, 6)


def test_a_normalisation_has_a_number_a_channel() -> None:
    with pytest.raises(ValidationError, match="a channel"):
        ImageInputs.model_validate(COLOUR.model_dump() | {"normalise": {"mean": (0,), "deviation": (1,)}})

"""PNG and JPEG files as the pixels that a model takes.

How an image is processed is declared in the manifest, and so part of the version's digest; `described` says it in a
sentence. Headers are read before pixels: a file that says it is larger than `MAX_PIXELS` is refused before anything is
decompressed. What would be lost silently is refused: more than 8 bits a channel, and transparency where the model has
no channel for it and the manifest no `background`.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np

from service.domain import Floats
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from service.catalog.inputs.image import ImageInputs

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 4_000_000
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
COLOURS = {1: "made grey (ITU-R 601 luma)", 3: "made RGB", 4: "made RGBA"}
BITS = 24
"""Where a PNG file says how many bits a channel has: its first chunk has a fixed place. Pillow reads 16 as 8."""
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, TypeError, KeyError, IndexError)
"""What Pillow raises for files whose pixels or EXIF cannot be read; a broken PNG chunk is its SyntaxError."""


def described(inputs: ImageInputs) -> str:
    """How an image file is processed, for those who send one."""
    channels = inputs.shape[0]
    if not inputs.takes_files:
        return "not taken: how their pixels become the model's numbers is not known; images are nested lists"
    if channels not in MODES:
        return f"not taken: none has {channels} channels; images are nested lists"
    steps = ["PNG or JPEG, 8 bits a channel", "turned as its EXIF orientation says", COLOURS[channels]]
    steps.append("without colour profiles")
    if channels != len("RGBA"):
        ground = None if inputs.background is None else ", ".join(map(str, inputs.background))
        steps.append("transparent ones refused" if ground is None else f"laid over {ground} where it is transparent")
    _, height, width = inputs.shape
    if inputs.shorter_side is not None:
        steps.append(f"its shorter side made {inputs.shorter_side} pixels ({inputs.resize})")
        steps.append(f"the middle {width} by {height} cut out")
    else:
        is_fixed = inputs.resize == "none"
        steps.append(f"{width} by {height} pixels" + (" or refused" if is_fixed else f", made so ({inputs.resize})"))
    if inputs.normalise is not None:
        mean, deviation = (
            [f"{value:.6g}" for value in own] for own in (inputs.normalise.mean, inputs.normalise.deviation)
        )
        steps.append(
            f"then (value / 255 - mean) / deviation, with mean {', '.join(mean)}; deviation {', '.join(deviation)}"
        )
    else:
        low, high = inputs.range
        steps.append(f"then 0 to 255 stretched over the range {low:g} to {high:g}, for the manifest has no `normalise`")
    return "; ".join(steps)


def decode(inputs: ImageInputs, content: str) -> Floats:
    """The pixels [channels, height, width] of the file that `content` is the base64 of, in the model's own units.

    Raises InvalidRequest where it is not such a file, too large, or of another size and the manifest allows no
    resizing.
    """
    if not inputs.takes_files:
        raise InvalidRequest(
            "the manifest does not say how an image file becomes the model's numbers; send nested lists"
        )
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("image must be the base64 of a PNG or JPEG file") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large file, where the limit here is the lower one, and of spoilt EXIF
        return _in_units(inputs, _pixels(inputs, _opened(file)))


def _opened(file: bytes) -> Image:
    from PIL import Image, UnidentifiedImageError  # the front starts without it

    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, *DAMAGED) as error:
        raise InvalidRequest("image must be the base64 of a PNG or JPEG file") from error
    if image.width * image.height > MAX_PIXELS:
        raise InvalidRequest(f"the image has {image.width} by {image.height} pixels, over {MAX_PIXELS} in all")
    if image.mode not in EIGHT_BIT_MODES or (image.format == "PNG" and file[BITS] > 8):
        raise InvalidRequest("the image has more than 8 bits a channel; convert it first, as it was for the model")
    return image


def _pixels(inputs: ImageInputs, image: Image) -> Floats:
    """Values from 0 to 255, [channels, height, width]."""
    from PIL import Image, ImageOps

    channels, height, width = inputs.shape
    if channels not in MODES:
        raise InvalidRequest(f"an image file has no {channels} channels; send nested lists")
    try:
        image = _opaque(inputs, ImageOps.exif_transpose(image)).convert(MODES[channels])
    except DAMAGED as error:
        raise InvalidRequest("the image file is damaged") from error
    if inputs.resize == "none" and image.size != (width, height):
        raise InvalidRequest(
            f"the image is {image.width} by {image.height} pixels, the model takes {width} by {height}"
        )
    way = None if inputs.resize == "none" else Image.Resampling[inputs.resize.upper()]
    if inputs.shorter_side is not None:
        size = _scaled(image.size, inputs.shorter_side)
        if size[0] * size[1] > MAX_PIXELS:
            raise InvalidRequest(f"the image is too long, {image.width} by {image.height} pixels")
        image = _middle(image.resize(size, way), width, height)
    elif image.size != (width, height):
        image = image.resize((width, height), way)
    values = np.asarray(image, dtype=np.float64).reshape(height, width, channels)
    return values.transpose(2, 0, 1)


def _opaque(inputs: ImageInputs, image: Image) -> Image:
    """The image without transparency, unless the model has a channel for it."""
    from PIL import Image

    if inputs.shape[0] == len("RGBA") or not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    if inputs.background is None:
        raise InvalidRequest(
            "the image is transparent in places, and what lies behind it is not said; lay it over the background that "
            "the model was trained on first"
        )
    ground = inputs.background if len(inputs.background) == 3 else inputs.background * 3
    return Image.alpha_composite(Image.new("RGBA", image.size, (*ground, 255)), image).convert("RGB")


def _scaled(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """The size with the shorter side of so many pixels, and the other in proportion, rounded down."""
    shorter = min(size)
    width, height = (side * shorter_side // shorter for side in size)
    return width, height


def _middle(image: Image, width: int, height: int) -> Image:
    """What is cut out of the middle; of an odd number of pixels around it, as torchvision's CenterCrop has it."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _in_units(inputs: ImageInputs, values: Floats) -> Floats:
    """From 0 to 255 to the model's units: normalised where the manifest says so, else stretched over its range."""
    if inputs.normalise is not None:
        mean = np.array(inputs.normalise.mean).reshape(-1, 1, 1)
        deviation = np.array(inputs.normalise.deviation).reshape(-1, 1, 1)
        normalised: Floats = (values / 255 - mean) / deviation
        return normalised
    low, high = inputs.range
    return low + values / 255 * (high - low)

"""PNG and JPEG files as the pixels that a model takes.

What is done to an image is declared in the manifest and so part of the version's digest. Headers are read before
pixels: a file that says it is larger than `MOST_PIXELS` is refused before anything is decompressed. Transparency is
dropped where the model has no channel for it.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from service.catalog.manifest import ImageInputs
from service.domain import Floats
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 4_000_000
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def decode(inputs: ImageInputs, content: str) -> Floats:
    """The pixels [channels, height, width] of the file that `content` is the base64 of, in the model's own units.

    Raises InvalidRequest for what is no such file, too large, or of another size where the manifest allows no resizing.
    """
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("image must be the base64 of a PNG or JPEG file") from error
    return _in_units(inputs, _pixels(inputs, _opened(file)))


def _opened(file: bytes) -> Image:
    from PIL import Image, UnidentifiedImageError  # the front starts without it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the lower one
            image = Image.open(io.BytesIO(file), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise InvalidRequest("image must be the base64 of a PNG or JPEG file") from error
    if image.width * image.height > MOST_PIXELS:
        raise InvalidRequest(f"the image has {image.width} by {image.height} pixels, over {MOST_PIXELS} in all")
    if image.mode not in EIGHT_BIT_MODES:
        raise InvalidRequest("the image has more than 8 bits a channel; convert it first, as it was for the model")
    return image


def _pixels(inputs: ImageInputs, image: Image) -> Floats:
    """Values from 0 to 255, [channels, height, width]."""
    from PIL import Image

    channels, height, width = inputs.shape
    if inputs.resize == "none" and image.size != (width, height):
        raise InvalidRequest(
            f"the image is {image.width} by {image.height} pixels, the model takes {width} by {height}"
        )
    if channels not in MODES:
        raise InvalidRequest(f"an image file has no {channels} channels; send nested lists")
    try:
        image = image.convert(MODES[channels])
        way = None if inputs.resize == "none" else Image.Resampling[inputs.resize.upper()]
        if inputs.shorter_side is not None:
            size = _scaled(image.size, inputs.shorter_side)
            if size[0] * size[1] > MOST_PIXELS:
                raise InvalidRequest(f"the image is too long, {image.width} by {image.height} pixels")
            image = _middle(image.resize(size, way), width, height)
        elif image.size != (width, height):
            image = image.resize((width, height), way)
    except (OSError, ValueError, SyntaxError) as error:  # PIL's word for a broken PNG chunk is SyntaxError
        raise InvalidRequest("the image file is damaged") from error
    values = np.asarray(image, dtype=np.float64).reshape(height, width, channels)
    return values.transpose(2, 0, 1)


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

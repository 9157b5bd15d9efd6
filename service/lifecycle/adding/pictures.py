"""Images for a model: which axis holds the channels, rows of them in a file, and what the manifest says of pixels.

An ONNX file need not declare any of it, and a wrong guess would not show: what is not certain is asked, or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from service.catalog.inputs.image import Normalisation
from service.domain import Floats
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import AddedInputs, Ask
from service.lifecycle.adding.layout import channel_axis
from service.lifecycle.adding.rows import Rows, load_array, read_rows

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions
    from service.lifecycle.adding.manifests import ManifestChoices

Shape = tuple[int, ...]
Layout = Literal["first", "last"]

USUAL_CHANNELS = {1, 3, 4}
BYTES = 255


class AddedPictures(AddedInputs):
    """Rows [channels, height, width]; see `AddedInputs`."""

    def check_graph(self, model: ModelProto, options: AddOptions, ask: Ask) -> None:
        """The first axis holds the channels."""
        refuse_channels_last(model, self.input.name, self.input.shape, options.channels, ask)

    def read(self, data: Path, options: AddOptions, ask: Ask) -> Rows:
        """Images of the shape."""
        return read_pictures(data, self.input.shape, ask)

    def normalisation(self, options: AddOptions, rows: Rows | None, ask: Ask) -> Normalisation | None:
        """As the command says, or as the user answers where the rows do not show it."""
        channels = self.input.shape[0]
        if options.normalise is not None:
            return read_normalisation(options.normalise, channels)
        return ask_normalisation(None if rows is None else rows.values, channels, ask)

    def declared(
        self, rows: Floats | None, missing: Sequence[float | None], choices: ManifestChoices
    ) -> dict[str, Any]:
        """The range of pixels, and how image files are normalised."""
        return image_inputs(self.input.name, self.input.shape, rows, choices.normalise)

    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> Any:
        """A grey for one image, and for several the mean of the brighter half: the mean of all is the baseline itself,
        and its explanation would be zero."""
        images = np.full_like(baseline, np.mean(declared["range"])) if rows is None else baseline
        grey = np.full(images.shape[1], (images.min() + images.max()) / 2)
        brighter = images[images.mean(axis=1).argsort()[-max(2, -(-len(images) // 2)) :]]
        image = brighter.mean(axis=0) if len(images) > 1 else grey
        return image.astype(np.float32).reshape(self.input.shape).tolist()


def refuse_channels_last(model: ModelProto, name: str, shape: Shape, stated: Layout | None, ask: Ask) -> None:
    """Raises CatalogError unless images [channels, height, width] are what the input `name` takes.

    The graph's first operator with channels decides; else the axis with a usual number of channels, or the user.
    """
    layout = stated or _layout_of_graph(model, name) or _layout_of_shape(shape)
    sizes = " x ".join(map(str, shape))
    if layout is None:
        answer = ask(f"which axis of an image of {sizes} holds the channels, the first or the last?", "")
        layout = "first" if answer.startswith("f") else "last" if answer.startswith("l") else None
    if layout is None:
        raise CatalogError(
            f"the file does not say which axis of an image of {sizes} holds the channels; if it is the first, add "
            "`--channels first`; if it is the last, export the model with the channels first (tf2onnx: inputs_as_nchw)"
        )
    if layout == "last":
        raise CatalogError(
            f"the model takes images of {sizes} with their channels last, and images are served with their channels "
            "first: export it so (tf2onnx: inputs_as_nchw with the input's name)"
        )


def _layout_of_graph(model: ModelProto, name: str) -> Layout | None:
    axis = channel_axis(model, name, 4)
    return "first" if axis == 1 else "last" if axis == 3 else None


def _layout_of_shape(shape: Shape) -> Layout | None:
    is_first, is_last = (size in USUAL_CHANNELS for size in (shape[0], shape[-1]))
    if is_first == is_last:
        return None
    return "first" if is_first else "last"


def read_pictures(path: Path, shape: Shape, ask: Ask) -> Rows:
    """The images of a file, flat, as the model takes them. Raises CatalogError, saying what to do."""
    if path.suffix.lower() == ".csv":
        if shape[0] != 1:
            raise CatalogError(f"{path.name}: {_wanted(shape)}; save them as .npy")
        return read_rows(path, shape, ())
    array = load_array(path)
    own = tuple(array.shape[1:])
    if not _is_of(own, shape):
        moved = own == (*shape[1:], shape[0])
        turn = "; their channels come last: save np.moveaxis(images, -1, 1)" if moved else ""
        raise CatalogError(f"{path.name} holds an array of shape {list(array.shape)}; {_wanted(shape)}{turn}")
    if not len(array):
        raise CatalogError(f"{path.name} holds no rows")
    values: Floats = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(values).all():
        raise CatalogError(f"{path.name} holds values that are infinite or no numbers")
    return Rows(_scaled(path, array, values, ask))


def _wanted(shape: Shape) -> str:
    return f"rows are images [rows, channels, height, width], here [rows, {', '.join(map(str, shape))}]"


def _is_of(own: Shape, shape: Shape) -> bool:
    """A single channel may be left out or be last, or the image be flat: the order of the numbers is the same."""
    same = [shape] if shape[0] != 1 else [shape, shape[1:], (*shape[1:], 1), (shape[1] * shape[2],)]
    return own in same


def _scaled(path: Path, array: NDArray[Any], values: Floats, ask: Ask) -> Floats:
    """Bytes scaled as the model takes them, which no file says."""
    if array.dtype.kind not in "ui" or values.max() <= 1 or values.min() < 0 or values.max() > BYTES:
        return values
    answer = ask(f"{path.name} holds whole numbers up to 255; are they divided by 255 for the model? (yes or no)", "")
    if answer.startswith("y"):
        return values / BYTES
    if answer.startswith("n"):
        return values
    raise CatalogError(
        f"{path.name} holds whole numbers up to 255, and it is not known whether the model takes them so, divided by "
        "255, or normalised: save them as float32, as the model takes them"
    )


def read_normalisation(text: str, channels: int) -> Normalisation | None:
    """`MEANS/DEVIATIONS`, each a number a channel separated by commas; None for an empty text. Raises CatalogError."""
    if not text.strip():
        return None
    try:
        mean, deviation = ([float(number) for number in part.split(",")] for part in text.split("/"))
        if {len(mean), len(deviation)} != {channels}:
            raise ValueError
        return Normalisation(mean=tuple(mean), deviation=tuple(deviation))
    except ValueError:
        numbers = ",".join(["0.5"] * channels)
        raise CatalogError(
            f"{text!r} is no normalisation: that is {channels} means and as many deviations, above 0, of value / 255, "
            f"such as {numbers}/{numbers}"
        ) from None


def ask_normalisation(rows: Floats | None, channels: int, ask: Ask) -> Normalisation | None:
    """How pixels of image files are normalised, unless the rows show that they are divided by 255, or left as they
    are."""
    if rows is not None and _plain_range(rows) is not None:
        return None
    usual = "0 to 1" if rows is None else "unknown, so that no files are taken"
    question = f"means and deviations of the channels that pixels / 255 were normalised with, m,m/d,d; empty: {usual}"
    return read_normalisation(ask(question, ""), channels)


def image_inputs(tensor: str, shape: Shape, rows: Floats | None, normalise: Normalisation | None) -> dict[str, Any]:
    """The manifest's `inputs`. Raises CatalogError where the rows exceed the range that the normalisation implies."""
    declared: dict[str, Any] = {"kind": "image", "tensor": tensor, "shape": list(shape)}
    if normalise is None:
        plain = (0.0, 1.0) if rows is None else _plain_range(rows)
        if plain is not None:
            return {**declared, "range": list(plain)}
        assert rows is not None
        return {**declared, "range": list(_wide_range(rows)), "takes_files": False}
    mean, deviation = np.array(normalise.mean), np.array(normalise.deviation)
    low, high = float(((0 - mean) / deviation).min()), float(((1 - mean) / deviation).max())
    slack = 1e-3 * (high - low)  # rows may have been normalised in float32
    if rows is not None and (rows.min() < low - slack or rows.max() > high + slack):
        raise CatalogError(
            f"normalised so, pixels lie between {low:.4g} and {high:.4g}, and the rows between {rows.min():.4g} and "
            f"{rows.max():.4g}: they were made otherwise"
        )
    normalised = {"mean": list(normalise.mean), "deviation": list(normalise.deviation)}
    return {**declared, "range": [low - slack, high + slack], "normalise": normalised}


def _plain_range(rows: Floats) -> tuple[float, float] | None:
    """The range of bytes, or of bytes divided by 255, where the rows fill one of them."""
    low, high = float(rows.min()), float(rows.max())
    if low < 0 or high > BYTES:
        return None
    return (0.0, 1.0) if high <= 1 else (0.0, float(BYTES)) if high > BYTES / 2 else None


def _wide_range(rows: Floats) -> tuple[float, float]:
    """The range of the rows, and half of it more on either side; never below zero if the rows are not."""
    low, high = float(rows.min()), float(rows.max())
    more = (high - low) / 2 or max(abs(high), 1.0)
    return (0.0 if low >= 0 else low - more), high + more

"""Reads ONNX files, with their weights where those lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from service.artefacts.onnx.weights import ReadBeside, fill, is_apart, location_of, tensors_of
from service.artefacts.reported import reported
from service.errors import CatalogError

ONE_FILE = (
    "torch.onnx.export(..., external_data=False), or onnx.save(onnx.load('model.onnx'), 'one.onnx') where it has "
    "less than 2 GB"
)


def parse_onnx(content: bytes, read_beside: ReadBeside | None = None) -> onnx.ModelProto:
    """The model in `content`, with all its weights; those in other files are read by `read_beside`.

    Raises CatalogError when it is no valid ONNX model, or points to data outside of its folder, or at all where there
    is no `read_beside`.
    """
    if not content:
        raise CatalogError("not a valid ONNX model: the file is empty")
    try:
        model = onnx.load_model_from_string(content)
        apart = [tensor for tensor in tensors_of(model) if is_apart(tensor)]
        for tensor in apart:
            _check_location(tensor, can_read=read_beside is not None)
        _check(model, apart)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CatalogError("not a valid ONNX model: the file is cut off, spoilt, or of another kind") from error
    except (ValueError, TypeError, RuntimeError, onnx.checker.ValidationError) as error:
        raise CatalogError(f"not a valid ONNX model: {reported(error)}") from error
    if read_beside is not None:
        fill(apart, read_beside)
    return model


def _check_location(tensor: onnx.TensorProto, *, can_read: bool) -> None:
    location = location_of(tensor)
    start = f"the ONNX model keeps {tensor.name!r} in a file outside itself, {location!r}, "
    path = PurePosixPath(location)
    if path.is_absolute() or ".." in path.parts or "\\" in location or not path.parts:
        raise CatalogError(f"{start}which does not lie in its folder; export it again as one file: {ONE_FILE}")
    if not can_read:
        raise CatalogError(f"{start}which is not read here; export it again as one file: {ONE_FILE}")


def _check(model: onnx.ModelProto, apart: Sequence[onnx.TensorProto]) -> None:
    """The checker looks for other files where the process runs: it is shown empty tensors in their place."""
    kept = []
    for tensor in apart:
        own = onnx.TensorProto()
        own.CopyFrom(tensor)
        kept.append(own)
        del tensor.dims[:], tensor.external_data[:]
        tensor.dims.append(0)
        tensor.ClearField("data_location")
    onnx.checker.check_model(model)
    for tensor, own in zip(apart, kept, strict=True):
        tensor.CopyFrom(own)

"""Weights that lie beside their graph, and models that are too large for one protobuf message, which ends at 2 GB.

In memory a model holds all its weights, wherever they were read from, and may have any size. Only where it becomes
bytes are they taken out of it: for ONNX Runtime, for the inliner, and for the files of a version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnxruntime
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper

from service.errors import CatalogError

LARGE = 2**30
"""The bytes of weights over which they are not made part of the model's own bytes."""
SMALL = 1024
"""The bytes of a weight that stays in the graph in any case: shapes and axes, which are read while it is opened."""
BITS: Mapping[int, int] = {
    **dict.fromkeys((TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.UINT2, TensorProto.INT2), 2),
}
"""Of the element types of which several share a byte."""
ReadBeside = Callable[[str], bytes]
"""From the location of a file, as a graph names it, relative to its own folder, to its bytes; or raises
CatalogError."""


def tensors_of(message: Message) -> Iterator[TensorProto]:
    """Every tensor anywhere in the model: initialisers, constants, branches, functions."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from tensors_of(child)


def is_apart(tensor: TensorProto) -> bool:
    """Whether a tensor's values lie in another file than the graph."""
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def location_of(tensor: TensorProto) -> str:
    """The file that holds a tensor's values, as the graph names it."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def fill(tensors: Sequence[TensorProto], read_beside: ReadBeside) -> None:
    """Puts the values of tensors that lie in other files into them. Raises CatalogError where a file ends too early, or
    the graph says something else of it."""
    contents: dict[str, memoryview] = {}
    for tensor in tensors:
        location = location_of(tensor)
        if location not in contents:
            contents[location] = memoryview(read_beside(location))
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = -(-prod(tensor.dims) * _bits(tensor) // 8)
        start, length = (
            _number(tensor, entries.get(key, default)) for key, default in (("offset", 0), ("length", size))
        )
        if length != size or start + size > len(contents[location]):
            raise CatalogError(
                f"{location} does not hold the {size} bytes of {tensor.name!r} where the graph says: they belong to "
                "different exports, or the file is cut off"
            )
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = bytes(contents[location][start : start + size])


def _bits(tensor: TensorProto) -> int:
    if tensor.data_type in BITS:
        return BITS[tensor.data_type]
    try:
        return 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:
        raise CatalogError(f"not a valid ONNX model: {tensor.name!r} is of no type that ONNX knows") from None


def _number(tensor: TensorProto, stated: str | int) -> int:
    try:
        number = int(stated)
    except ValueError:
        number = -1
    if number < 0:
        raise CatalogError(f"not a valid ONNX model: {tensor.name!r} lies at {stated!r} of its file")
    return number


def is_large(model: ModelProto) -> bool:
    """Whether its weights are too many to be part of the model's own bytes."""
    return sum(_size(tensor) for tensor in model.graph.initializer) > LARGE


def _size(tensor: TensorProto) -> int:
    return -(-int(prod(tensor.dims)) * _bits(tensor) // 8)


def without_weights(model: ModelProto, location: str) -> tuple[ModelProto, list[TensorProto]]:
    """The model with its larger weights in the file `location`, one after the other, and these weights; it is not
    copied."""
    light = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copied(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copied(light.graph, field.name, value)
    weights, start = [], 0
    for tensor in model.graph.initializer:
        size = _size(tensor)
        if size < SMALL:
            light.graph.initializer.add().CopyFrom(tensor)
            continue
        apart = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        apart.data_location = TensorProto.EXTERNAL
        for key, stated in (("location", location), ("offset", start), ("length", size)):
            apart.external_data.add(key=key, value=str(stated))
        weights.append(tensor)
        start += size
    return light, weights


def _copied(message: Message, name: str, value: Any) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def without_weights_in(model: ModelProto, function: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """What a function of the graph makes of the model; it is not given the weights of a large one."""
    if not is_large(model):
        return function(model)
    light, weights = without_weights(model, "weights")
    result, known = function(light), {tensor.name: tensor for tensor in weights}
    for tensor in result.graph.initializer:
        if is_apart(tensor):
            tensor.CopyFrom(known[tensor.name])
    return result


def quiet_options() -> onnxruntime.SessionOptions:
    """For a graph that is run a few times, one operator after the other, as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def open_session(
    model: ModelProto, options: onnxruntime.SessionOptions, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a model of any size. Raises what ONNX Runtime raises."""
    if not is_large(model):
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[*providers])
    light, weights = without_weights(model, "weights")
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(numpy_helper.to_array(tensor), tensor.data_type)
        for tensor in weights
    ]
    options.add_external_initializers([tensor.name for tensor in weights], values)
    return onnxruntime.InferenceSession(light.SerializeToString(), options, providers=[*providers])


def write_model(folder: Path, file: str, model: ModelProto) -> dict[str, Any]:
    """Writes a model, a large one in two files; what a manifest's `artefact` says of them."""
    if not is_large(model):
        content = model.SerializeToString()
        (folder / file).write_bytes(content)
        return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}
    light, weights = without_weights(model, f"{file}.data")
    content, digest = light.SerializeToString(), hashlib.sha256()
    (folder / file).write_bytes(content)
    with (folder / f"{file}.data").open("wb") as data:
        for tensor in weights:
            part = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
            data.write(part)
            digest.update(part)
    files = {f"{file}.data": digest.hexdigest()}
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "files": files}

"""ONNX artefacts: ONNX Runtime predicts, and a torch module converted from the same graph is differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from service.artefacts.deployed import DeployedArtefact, Opened, TorchOutputs, log_odds
from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.inputs.registry import onnx_inputs
from service.artefacts.onnx.functions import without_fused
from service.artefacts.onnx.open_rows import fixed_rows, with_open_rows
from service.artefacts.onnx.parsing import parse_onnx
from service.artefacts.onnx.quantisation import EXACT_PRODUCTS, scales_depend_on_all_rows
from service.artefacts.onnx.session_inputs import GraphInput, SessionInputs, read_graph_inputs
from service.artefacts.onnx.twin_source import twin_of
from service.artefacts.onnx.weights import open_session
from service.artefacts.reported import reported
from service.catalog.manifest import Manifest
from service.domain import OutputSpace
from service.errors import CatalogError


class OnnxArtefact:
    """The artefact in production, in ONNX Runtime.

    Where the manifest names an inner tensor of the graph, that is added to the graph's outputs.

    A graph that is `alone` is given one row at a time: it was exported so, or it chooses a scale for all rows together,
    so that what one is answered would depend on the others.
    """

    def __init__(
        self, content: bytes | ModelProto, manifest: Manifest, device: torch.device, *, alone: bool = False
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry(*EXACT_PRODUCTS)
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        if isinstance(content, ModelProto):
            self._session = open_session(content, options, providers)
        else:
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        self._alone = alone
        self._outputs = manifest.outputs
        self._probability = manifest.outputs.tensors.get(OutputSpace.PROBABILITY)

    @property
    def inputs(self) -> dict[str, GraphInput]:
        """The inputs of the graph."""
        return read_graph_inputs(self._session)

    def answers(self, session_inputs: Mapping[str, NDArray[Any]]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, in the graph's own precision."""
        outputs = self._outputs
        names = [outputs.network_tensor, *([] if self._probability is None else [self._probability])]
        own, *probabilities = self._run(names, session_inputs)
        network = self._of_network(own)
        spaces = {outputs.network_space: log_odds(network) if outputs.has_one_logit else network}
        if probabilities:
            spaces[OutputSpace.PROBABILITY] = self._of_labels(probabilities[0], len(network))
        elif OutputSpace.PROBABILITY in outputs.spaces:
            spaces[OutputSpace.PROBABILITY] = outputs.network_link.probabilities(network)
        return spaces

    def _run(self, names: Sequence[str], session_inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """These tensors of the graph for all rows."""
        count = len(next(iter(session_inputs.values())))
        if not self._alone or count == 1:
            together: list[NDArray[Any]] = self._session.run(names, session_inputs)
            return together
        feeds = ({name: rows[at : at + 1] for name, rows in session_inputs.items()} for at in range(count))
        each = [self._session.run(names, feed) for feed in feeds]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def _of_network(self, own: NDArray[Any]) -> NDArray[np.floating]:
        """[n, outputs], as the twin answers them; one logit is the second label's, with zero beside it."""
        if not self._outputs.has_one_logit:
            return _single_or_double(own if own.ndim > 1 else own[:, None])
        logit = _single_or_double(own.reshape(len(own), -1))
        return np.concatenate([np.zeros_like(logit), logit], axis=1)

    def _of_labels(self, probabilities: NDArray[Any], rows: int) -> NDArray[np.floating]:
        """[n, labels]; where two share one logit, there may be only the second one's."""
        if self._outputs.has_one_logit and probabilities.size == rows:
            second = probabilities.reshape(-1, 1)
            probabilities = np.concatenate([1 - second, second], axis=1)
        return _single_or_double(probabilities if probabilities.ndim > 1 else probabilities[:, None])


class DeployedOnnx:
    """An artefact that takes rows of the model, from which `session_inputs` makes the inputs of its graph."""

    def __init__(self, artefact: OnnxArtefact, session_inputs: SessionInputs) -> None:
        self._artefact = artefact
        self._session_inputs = session_inputs

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, outputs] in every output space, for rows [n, columns], flat."""
        return self._artefact.answers(self._session_inputs(rows))


def _single_or_double(values: NDArray[Any]) -> NDArray[np.floating]:
    """Doubles as they are, anything else in float32."""
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def open_onnx(contents: Mapping[str, bytes], manifest: Manifest, device: torch.device) -> Opened:
    """The artefact and its twin, of the artefact's files. Raises CatalogError where ONNX Runtime cannot open it, or the
    graph has no twin."""
    content, inputs = contents[manifest.artefact.file], manifest.inputs
    own_graph = parse_onnx(content, partial(_read_beside, contents, manifest))
    alone = scales_depend_on_all_rows(own_graph) or fixed_rows(own_graph) == 1
    try:
        graph = without_fused(with_open_rows(own_graph))
        artefact = OnnxArtefact(_with_outputs(content, own_graph, manifest), manifest, device, alone=alone)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot open {manifest.artefact.file}: {reported(error)}") from error
    graph_inputs = artefact.inputs
    whole = onnx_inputs(inputs, graph_inputs)

    def opened(inputs_of_graph: OnnxInputs) -> Opened:
        logit = manifest.outputs.network_tensor
        session_inputs = inputs_of_graph.session_inputs()
        source = inputs_of_graph.source(graph, session_inputs, logit)
        encoding = source.encoding
        deployed, twin = DeployedOnnx(artefact, session_inputs), twin_of(source, manifest).to(device)
        own_type = inputs_of_graph.row_type()
        worst = partial(source.worst_operator, logit, session_inputs)
        if not all(each.is_floating for each in graph_inputs.values()):
            shape = inputs_of_graph.inputs.shape if encoding is None else encoding.shape
            forwards: DeployedArtefact = TorchOutputs(twin, device, shape, manifest.outputs)
        else:
            encoded = inputs_of_graph.encoded_session_inputs(encoding)
            forwards = deployed if encoded is None else DeployedOnnx(artefact, encoded)
        return Opened(deployed, twin, encoding, forwards, worst, own_type, alone=alone)

    return replace(opened(whole), cut_to=lambda inputs: opened(whole.cut_to(inputs)))


def _read_beside(contents: Mapping[str, bytes], manifest: Manifest, location: str) -> bytes:
    """A file that the graph keeps weights in, whose digest the manifest has."""
    artefact = manifest.artefact
    file = str(PurePosixPath(artefact.file).parent / location)
    if file not in artefact.files:
        raise CatalogError(
            f"the ONNX model keeps weights in a file outside itself, {location!r}, which the manifest does not name: "
            "add it to the artefact's `files`, with its sha256"
        )
    return contents[file]


def _with_outputs(content: bytes, graph: ModelProto, manifest: Manifest) -> bytes | ModelProto:
    """The artefact as it is, or with those of the manifest's tensors added to its outputs that are inner ones, and with
    its weights where those lie beside it."""
    known = {output.name for output in graph.graph.output}
    inner = [name for name in manifest.outputs.tensors.values() if name not in known]
    if not inner:
        return graph if manifest.artefact.files else content
    extended_model = ModelProto()
    extended_model.CopyFrom(graph)
    extended_model.graph.output.extend(ValueInfoProto(name=name) for name in inner)
    return extended_model

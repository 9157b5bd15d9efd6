"""ONNX artefacts: ONNX Runtime predicts, and a torch module converted from the same graph is differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from service.artefacts.deployed import Opened, TorchOutputs, log_odds
from service.artefacts.inputs.registry import onnx_inputs
from service.artefacts.onnx.session_inputs import Feeds, GraphInput, graph_inputs
from service.artefacts.onnx.twin_source import twin_of
from service.artefacts.onnx.twins import parse_onnx
from service.artefacts.reported import reported
from service.catalog.manifest import Manifest
from service.domain import OutputSpace
from service.errors import CatalogError


class OnnxArtefact:
    """The artefact in production, in ONNX Runtime.

    Where the manifest names a tensor inside of the graph, the graph is asked for it beside its own outputs.
    """

    def __init__(self, content: bytes, manifest: Manifest, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        self._has_one_logit = manifest.outputs.has_one_logit
        self._logit = manifest.outputs.tensors[OutputSpace.LOGIT]
        self._probability = manifest.outputs.tensors.get(OutputSpace.PROBABILITY)

    @property
    def inputs(self) -> dict[str, GraphInput]:
        """The inputs of the graph."""
        return graph_inputs(self._session)

    def answers(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, labels] in every output space, in the graph's own precision."""
        if self._probability is None:
            (logits,) = self._session.run([self._logit], feeds)
            logits = self._of_labels(logits)
            return {OutputSpace.LOGIT: self._told(logits), OutputSpace.PROBABILITY: _softmax(logits)}
        logits, probabilities = self._session.run([self._logit, self._probability], feeds)
        logits = self._told(self._of_labels(logits))
        if self._has_one_logit and probabilities.size == len(logits):
            probabilities = np.concatenate([1 - probabilities.reshape(-1, 1), probabilities.reshape(-1, 1)], axis=1)
        return {
            OutputSpace.LOGIT: logits,
            OutputSpace.PROBABILITY: _single_or_double(probabilities),
        }

    def _of_labels(self, logits: NDArray[Any]) -> NDArray[np.floating]:
        """[n, labels], whose softmax the probabilities are; one logit is the second label's, with zero beside it."""
        if not self._has_one_logit:
            return _single_or_double(logits)
        one = _single_or_double(logits.reshape(len(logits), -1))
        return np.concatenate([np.zeros_like(one), one], axis=1)

    def _told(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        return log_odds(logits) if self._has_one_logit else logits


class Answering:
    """An artefact for rows, which become the inputs of its graph by `feeds`."""

    def __init__(self, artefact: OnnxArtefact, feeds: Feeds) -> None:
        self._artefact = artefact
        self._feeds = feeds

    def outputs(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, NDArray[np.floating]]:
        """The outputs [n, labels] in every output space, for rows [n, columns], flat."""
        return self._artefact.answers(self._feeds(rows))


def _single_or_double(values: NDArray[Any]) -> NDArray[np.floating]:
    """Doubles as they are, anything else in float32."""
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: NDArray[np.floating] = (exponents / exponents.sum(axis=1, keepdims=True)).astype(logits.dtype)
    return probabilities


def open_onnx(content: bytes, manifest: Manifest, device: torch.device) -> Opened:
    """The artefact and its twin. Raises CatalogError where ONNX Runtime cannot open it, or the graph has no twin."""
    graph, inputs = parse_onnx(content), manifest.inputs
    try:
        artefact = OnnxArtefact(_with_outputs(content, graph, manifest), manifest, device)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot open {manifest.artefact.file}: {reported(error)}") from error
    given = artefact.inputs
    taken, logit = onnx_inputs(inputs, given), manifest.outputs.tensors[OutputSpace.LOGIT]
    feeds = taken.feeds()
    source = taken.source(graph, feeds, logit)
    encoding = source.encoding
    deployed, twin = Answering(artefact, feeds), twin_of(source, manifest).to(device)
    own_type = taken.row_type()
    worst = partial(source.worst_operator, logit, feeds)
    if not all(each.is_floating for each in given.values()):
        shape = inputs.shape if encoding is None else encoding.shape
        forwards = TorchOutputs(twin, device, shape, has_one_logit=manifest.outputs.has_one_logit)
        return Opened(deployed, twin, encoding, forwards, worst, own_type)
    encoded = taken.encoded_feeds(encoding)
    of_encoded = deployed if encoded is None else Answering(artefact, encoded)
    return Opened(deployed, twin, encoding, of_encoded, worst, own_type)


def _with_outputs(content: bytes, graph: ModelProto, manifest: Manifest) -> bytes:
    """The artefact as it is, or with the manifest's tensors among its outputs where they are inside of the graph."""
    known = {output.name for output in graph.graph.output}
    inner = [name for name in manifest.outputs.tensors.values() if name not in known]
    if not inner:
        return content
    asked = ModelProto()
    asked.CopyFrom(graph)
    asked.graph.output.extend(ValueInfoProto(name=name) for name in inner)
    extended: bytes = asked.SerializeToString()
    return extended

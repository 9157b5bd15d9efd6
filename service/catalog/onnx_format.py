"""ONNX artefacts: ONNX Runtime predicts, and a torch module converted from the same graph is differentiated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from service.catalog.deployed import Opened
from service.catalog.manifest import Manifest, TokenInputs
from service.catalog.twins import build_twin, find_embedding, parse_onnx
from service.domain import OutputSpace
from service.errors import CatalogError


class OnnxArtefact:
    """The artefact in production, in ONNX Runtime."""

    def __init__(self, content: bytes, manifest: Manifest, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        self._input = manifest.inputs.tensor
        self._shape = manifest.inputs.shape
        self._dtype = np.float32 if manifest.inputs.kind != "tokens" else _integer_type(self._session)
        self._spaces = tuple(manifest.outputs.tensors)
        self._tensors = [manifest.outputs.tensors[space] for space in self._spaces]

    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        """The outputs [n, labels] in every output space, for rows [n, columns], flat."""
        given = rows.reshape(-1, *self._shape).astype(self._dtype, copy=False)
        return dict(zip(self._spaces, self._session.run(self._tensors, {self._input: given}), strict=True))


def _integer_type(session: onnxruntime.InferenceSession) -> type[np.integer]:
    return np.int32 if session.get_inputs()[0].type == "tensor(int32)" else np.int64


def open_onnx(content: bytes, manifest: Manifest, device: torch.device) -> Opened:
    """The artefact and its twin. Raises CatalogError where ONNX Runtime cannot open it, or the graph has no twin."""
    graph = parse_onnx(content)
    try:
        deployed = OnnxArtefact(content, manifest, device)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot open {manifest.artefact.file}: {error}") from error
    tensor, embedding = manifest.inputs.tensor, None
    if isinstance(manifest.inputs, TokenInputs):
        tensor, embedding = find_embedding(graph, tensor)
    twin = build_twin(graph, tensor, manifest.outputs.tensors[OutputSpace.LOGIT]).to(device)
    return Opened(deployed, twin, embedding)

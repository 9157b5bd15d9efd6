"""Parts of a graph, run on their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime
from onnx import ModelProto

from service.artefacts.onnx.graphs import ancestors
from service.artefacts.onnx.quantisation import EXACT_PRODUCTS
from service.artefacts.onnx.weights import open_session
from service.errors import CatalogError


def open_part(model: ModelProto, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session of the part of the graph that computes these tensors: ONNX Runtime would else compute the rest too."""
    needed = {
        name for end in outputs for node in ancestors(model.graph.node, end) for name in (*node.input, *node.output)
    }
    nodes = [node for node in model.graph.node if not needed.isdisjoint(node.output)]
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    asked_for = [onnx.ValueInfoProto(name=name) for name in outputs]
    part = onnx.helper.make_graph(nodes, "part", list(model.graph.input), asked_for, constants)
    imports = list(model.opset_import)
    model_of_part = onnx.helper.make_model(
        part, opset_imports=imports, ir_version=model.ir_version, functions=list(model.functions)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_PRODUCTS)
    try:
        return open_session(model_of_part, options)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the graph: {error}") from error

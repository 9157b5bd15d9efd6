"""The ONNX export of a Hugging Face folder's network, as optimum lays it out: model.onnx beside config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from service.artefacts.huggingface.sentence_modules import Pooling
from service.artefacts.onnx.parsing import parse_onnx
from service.catalog.inputs.tokens import SideInput
from service.errors import CatalogError
from service.lifecycle.adding.files import read_beside
from service.lifecycle.adding.pooled_graphs import EMBEDDING, with_pooling

FILES = ("model.onnx", "onnx/model.onnx")
TOKENS = "input_ids"
SIDES: Mapping[str, SideInput] = {"attention_mask": "mask", "token_type_ids": "zeros", "position_ids": "positions"}
"""What exporters call a graph's inputs, and what they hold for one text."""
LOGITS = "logits"
OF_TOKENS = ("last_hidden_state", "token_embeddings")
"""What exporters call the embeddings of a text's tokens."""


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """The file, its inputs beside the tokens, the tensor of logits, values or embeddings, and the files of its weights,
    if it does not hold them itself.

    `model` is what is served in the file's place, with all weights, where something had to be added to it.
    """

    file: Path
    side: Mapping[str, SideInput]
    output: str
    beside: tuple[str, ...] = ()
    model: ModelProto | None = None


def find_graph(source: Path) -> Path | None:
    """The exported graph in a folder, if there is one."""
    return next((source / file for file in FILES if (source / file).is_file()), None)


def read_graph(file: Path, pooling: Pooling | None = None) -> ExportedGraph:
    """What the graph takes and answers; the tokens' embeddings that it answers are pooled.

    Raises CatalogError where that is not what a classifier of texts does, or with `pooling` an encoder.
    """
    beside: list[str] = []

    def read(location: str) -> bytes:
        beside.append(location)
        return read_beside(file.parent, location)

    model = parse_onnx(file.read_bytes(), read)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    unknown = [name for name in names if name != TOKENS and name not in SIDES]
    if TOKENS not in names or unknown:
        raise CatalogError(
            f"the inputs of {file.name} are {', '.join(names)}; a classifier of texts is exported with {TOKENS} and "
            f"perhaps {', '.join(SIDES)}"
        )
    side = {name: kind for name, kind in SIDES.items() if name in names}
    if pooling is not None:
        if EMBEDDING in outputs:
            return ExportedGraph(file, side, EMBEDDING, tuple(beside))
        tokens = next((name for name in OF_TOKENS if name in outputs), None)
        if tokens is None:
            raise CatalogError(
                f"the outputs of {file.name} are {', '.join(outputs)}; an encoder of texts is exported with "
                f"{EMBEDDING} or {OF_TOKENS[0]}"
            )
        return ExportedGraph(file, side, EMBEDDING, model=with_pooling(model, tokens, pooling))
    if LOGITS not in outputs and len(outputs) != 1:
        raise CatalogError(f"the outputs of {file.name} are {', '.join(outputs)}; none of them is called {LOGITS}")
    return ExportedGraph(file, side, LOGITS if LOGITS in outputs else outputs[0], tuple(beside))

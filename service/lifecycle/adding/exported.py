"""The ONNX export of a Hugging Face folder's network, as optimum lays it out: model.onnx beside config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.artefacts.onnx.parsing import parse_onnx
from service.catalog.inputs.tokens import SideInput
from service.errors import CatalogError
from service.lifecycle.adding.files import read_beside

FILES = ("model.onnx", "onnx/model.onnx")
TOKENS = "input_ids"
SIDES: Mapping[str, SideInput] = {"attention_mask": "mask", "token_type_ids": "zeros", "position_ids": "positions"}
"""What exporters call a graph's inputs, and what they hold for one text."""
LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """The file, its inputs beside the tokens, the tensor of logits or values, and the files of its weights, if it does
    not hold them itself."""

    file: Path
    side: Mapping[str, SideInput]
    output: str
    beside: tuple[str, ...] = ()


def find_graph(source: Path) -> Path | None:
    """The exported graph in a folder, if there is one."""
    return next((source / file for file in FILES if (source / file).is_file()), None)


def read_graph(file: Path) -> ExportedGraph:
    """What the graph takes and answers. Raises CatalogError where that is not what a classifier of texts does."""
    beside: list[str] = []

    def read(location: str) -> bytes:
        beside.append(location)
        return read_beside(file.parent, location)

    graph = parse_onnx(file.read_bytes(), read).graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    unknown = [name for name in names if name != TOKENS and name not in SIDES]
    if TOKENS not in names or unknown:
        raise CatalogError(
            f"the inputs of {file.name} are {', '.join(names)}; a classifier of texts is exported with {TOKENS} and "
            f"perhaps {', '.join(SIDES)}"
        )
    if LOGITS not in outputs and len(outputs) != 1:
        raise CatalogError(f"the outputs of {file.name} are {', '.join(outputs)}; none of them is called {LOGITS}")
    side = {name: kind for name, kind in SIDES.items() if name in names}
    return ExportedGraph(file, side, LOGITS if LOGITS in outputs else outputs[0], tuple(beside))

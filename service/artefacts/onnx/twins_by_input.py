"""The twins of ONNX artefacts by what they take: rows of numbers, tokens, or several inputs, categories among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper
from torch import Tensor, fx, nn
from torch.nn import functional

from service.artefacts.onnx.disagreement import worst_operator
from service.artefacts.onnx.embeddings import Lookup, check_embedding, find_embedding, find_lookups
from service.artefacts.onnx.graph_input_slices import ROW, Entrance, with_one_input, with_tokens_embedded
from service.artefacts.onnx.session_inputs import Feeds, GraphInput, columns_of, row_type
from service.artefacts.onnx.twins import build_twin
from service.catalog.inputs.encodings import Encoding, TokenEncoding, encoding_of, one_hot
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.manifest import Manifest
from service.domain import Floats


@dataclass(frozen=True, slots=True)
class TwinSource:
    """What a twin is made of: the part of `model` from the tensor `start` on, whose rows have the `shape`.

    Where the graph was rewritten, `start` is its only input, and takes encoded rows.
    """

    model: ModelProto
    start: str
    shape: tuple[int, ...] | None
    encoding: Encoding | None

    def worst_operator(self, logit: str, feeds: Feeds, rows: NDArray[np.floating]) -> str:
        """The operator whose counterpart differs most for these rows."""
        if self.start == ROW:
            given = rows if self.encoding is None else self.encoding(rows.astype(np.float64)).astype(rows.dtype)
            width = () if self.encoding is None else self.encoding.shape
            return worst_operator(self.model, ROW, logit, self.shape, given.reshape(len(rows), *(width or (-1,))))
        (given,) = feeds(rows).values()
        return worst_operator(self.model, self.start, logit, self.shape, given)


def source_of(graph: ModelProto, manifest: Manifest, given: Mapping[str, GraphInput], feeds: Feeds) -> TwinSource:
    """What the twin is made of. Raises CatalogError where tokens or categories are looked up otherwise than it says."""
    inputs, logit = manifest.inputs, manifest.outputs.network_tensor
    match inputs:
        case TokenInputs():
            return _of_tokens(graph, inputs, given, feeds)
        case TabularInputs() if inputs.has_categories or len(given) > 1 or given[inputs.tensor].dtype is not np.float32:
            return _of_table(graph, inputs, given, feeds, logit)
    return TwinSource(graph, inputs.tensor, inputs.shape, None)


def twin_of(source: TwinSource, manifest: Manifest) -> fx.GraphModule:
    """The twin. Raises CatalogError where there is none."""
    twin = build_twin(source.model, source.start, manifest.outputs.network_tensor, source.shape)
    return fx.symbolic_trace(_TwoLogits(twin)) if manifest.outputs.has_one_logit else twin


class _TwoLogits(nn.Module):
    """A network with one logit, the second label's, as one with two of the same softmax: the first one is zero.

    It is no label's log-odds: `Problem.logit_readout` says how a label's are read out of the two.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return functional.pad(self.network(rows).reshape(-1, 1), (1, 0))


def _of_tokens(graph: ModelProto, inputs: TokenInputs, given: Mapping[str, GraphInput], feeds: Feeds) -> TwinSource:
    tensor, table = find_embedding(graph, inputs.tensor)
    check_embedding(graph, inputs, feeds, tensor, table)
    if not inputs.side:
        return TwinSource(graph, tensor, inputs.shape, TokenEncoding(table, inputs.length))
    side = {name: (kind, _element_type(given[name])) for name, kind in inputs.side.items()}
    whole = with_tokens_embedded(graph, tensor, inputs.length, table.shape[1], side)
    return TwinSource(whole, ROW, None, TokenEncoding(table, inputs.length, inputs.padding))


def _element_type(given: GraphInput) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype)))


def _of_table(
    graph: ModelProto, inputs: TabularInputs, given: Mapping[str, GraphInput], feeds: Feeds, logit: str
) -> TwinSource:
    lookups = find_lookups(graph, inputs, feeds, logit)
    tables = [_table(inputs, number, lookups) for number in range(len(inputs.features))]
    encoding = encoding_of(inputs, tables)
    widths = encoding.widths
    element_type = int(helper.np_dtype_to_tensor_dtype(np.dtype(row_type(inputs, given))))
    entrances = [*_of_inputs(inputs, given, widths, element_type), *_of_lookups(lookups, widths)]
    whole = with_one_input(graph, entrances, sum(widths), element_type)
    return TwinSource(whole, ROW, None, encoding if inputs.has_categories else None)


def _table(inputs: TabularInputs, number: int, lookups: Sequence[Lookup]) -> Floats | None:
    """What a feature becomes: its one-hot columns, or what the graph itself makes of it."""
    feature = inputs.features[number]
    own = [lookup.columns for lookup in lookups if lookup.feature == number]
    if own:
        return np.concatenate(own, axis=1)
    return one_hot(feature) if feature.categories else None


def _of_inputs(
    inputs: TabularInputs, given: Mapping[str, GraphInput], widths: Sequence[int], of_row: int
) -> Iterator[Entrance]:
    """The graph's inputs that take numbers. Whole numbers are taken as real ones, of the row's element type, which the
    graph makes of them too."""
    for tensor, features in inputs.tensors.items():
        own = given[tensor]
        columns = columns_of(features, widths)
        if own.is_floating:
            yield Entrance(tensor, columns, own.row(len(columns)), _element_type(own))
        elif not any(inputs.features[number].categories for number in features):
            yield Entrance(tensor, columns, own.row(len(columns)), of_row)


def _of_lookups(lookups: Sequence[Lookup], widths: Sequence[int]) -> list[Entrance]:
    used: dict[int, int] = {}
    entrances = []
    for lookup in lookups:
        places = columns_of([lookup.feature], widths)
        start = used.get(lookup.feature, 0)
        shape = lookup.table.shape[1:]
        used[lookup.feature] = start + prod(shape)
        entrances.append(Entrance(lookup.tensor, places[start : start + prod(shape)], shape))
    return entrances

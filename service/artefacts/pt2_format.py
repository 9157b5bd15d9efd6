"""Programs of `torch.export`: the program itself predicts, and a trace of it is differentiated.

A .pt2 archive is code. Besides its graph it may hold pickles: `torch.export.load` of torch 2.13 opens the sample inputs
with `weights_only=True` and, when that fails, again without; tensors of a subclass and opaque objects it unpickles at
once; compiled kernels it loads as libraries. And expressions over sizes are evaluated as Python. So a program is opened
only when the operator of the service has named its digest (`Settings.trusted_artefacts`), which whoever can write into
the folder of models cannot do; and even then only when it holds nothing but the graph and plain tensors.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import PT2ArchiveReader

from service.artefacts.aten import in_plain_torch
from service.artefacts.deployed import Opened, TorchOutputs, opened
from service.catalog.manifest import Manifest
from service.errors import CatalogError
from service.settings import Settings

PLAIN_RECORDS = re.compile(
    r"models/model\.json|data/(weights|constants|sample_inputs)/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|archive_format|archive_version|byteorder|\.data/\w+|extra/.*"
)
"""All that a program of plain tensors consists of; the .pt files hold tensors only, or do not open."""
MIN_ROWS = 2
"""The lower bound that torch.export assumes for a dynamic dimension; such programs take a single row too."""


def open_pt2(content: bytes, manifest: Manifest, device: torch.device) -> Opened:
    """The program, in torch, and its trace.

    Raises CatalogError when the digest is not trusted, the archive holds more than a graph and tensors, or the program
    does not map rows of the manifest's shape to logits.
    """
    artefact, encoding = manifest.artefact, manifest.inputs.encoding
    shape = manifest.inputs.shape if encoding is None else encoding.shape
    if artefact.sha256 not in Settings().trusted_artefacts:
        raise CatalogError(
            f"{artefact.file} is a program, and its sha256 is not among ANSWERABLE_TRUSTED_ARTEFACTS: {artefact.sha256}"
        )
    _check_records(content)
    try:
        with _weights_only():
            program = move_to_device_pass(torch.export.load(io.BytesIO(content)), device)
        most = _check_signature(program, shape)
        module = program.module().requires_grad_(requires_grad=False)
        twin = in_plain_torch(fx.symbolic_trace(program.module(check_guards=False)))
        twin.requires_grad_(requires_grad=False)
        deployed = TorchOutputs(module, device, shape, manifest.outputs, most)
        _check_gradient(twin, shape, device)
    except CatalogError:
        raise
    except Exception as error:  # torch's errors share no base class of their own
        raise CatalogError(f"torch cannot open {artefact.file} and take a gradient of it: {error}") from error
    return opened(deployed, twin, encoding)


def _check_records(content: bytes) -> None:
    """Checks that the archive, as torch reads it, holds nothing but what a program of plain tensors needs."""
    try:
        with PT2ArchiveReader(io.BytesIO(content)) as archive:
            names = archive.get_file_names()
    except Exception as error:
        raise CatalogError("not an archive of torch.export.save") from error
    for name in names:
        if not PLAIN_RECORDS.fullmatch(name):
            raise CatalogError(f"the archive holds {name!r}: more than a graph and plain tensors, or an older format")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Makes `torch.load` refuse whatever is not a tensor, even where its caller allows it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check_signature(program: ExportedProgram, shape: tuple[int, ...]) -> int | None:
    """The most rows that the program takes at a time; None if there is no limit."""
    signature = program.graph_signature
    if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
        raise CatalogError("the program must take one tensor, the inputs, and answer one, the logits")
    (rows,) = (node.meta["val"] for node in program.graph.nodes if node.name == signature.user_inputs[0])
    count, *sizes = rows.shape
    if rows.dtype != torch.float32 or tuple(sizes) != shape:
        raise CatalogError(
            f"the program takes {rows.dtype} rows of {list(sizes)}, the manifest says float32 and {list(shape)}"
        )
    limits = None if isinstance(count, int) else program.range_constraints.get(count.node.expr)
    if limits is None or limits.lower > MIN_ROWS:
        raise CatalogError(
            f"the program takes {count} rows at a time: export it with dynamic_shapes=({{0: Dim('rows')}},)"
        )
    return int(limits.upper) if limits.upper.is_Integer else None


def _check_gradient(twin: fx.GraphModule, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises CatalogError when the twin cannot be differentiated."""
    if not twin(torch.zeros(MIN_ROWS, *shape, device=device, requires_grad=True)).requires_grad:
        raise CatalogError("no gradient reaches the input: on every way to the logits its values are cut off")

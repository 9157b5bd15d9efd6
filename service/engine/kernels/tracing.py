"""Tracing: the gradient program at one shape, as a flat list of operators that is run without Python between them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx

from service.engine.kernels.branchless import without_branches
from service.engine.kernels.chunks import Chunk
from service.engine.kernels.recording import record

LOG = logging.getLogger("answerable.worker")
AGREEMENT = 1e-3
"""The tolerance, as a share of the largest value; a value that was wrongly recorded as a constant differs by more."""

Program = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""From the fields of a `Chunk` to outputs, derivatives and contributions."""


def traced(program: Program, chunk: Chunk) -> Program:
    """The program as a flat list of operators, forward and backward; unchanged where its control flow depends on
    values, or where the list computes something else than the program for other points.

    On the CPU the list is run by TorchScript: without Python between the operators a chunk of 64 rows of the loan
    network takes 120 us and not 216, one of 2,048 rows 1.41 ms and not 1.67, and other threads may run meanwhile.
    TorchScript is deprecated; without it the list would run from Python, with the same bits.
    """
    try:
        graph = record(program, chunk)
    except Exception:  # tracing runs any code, and not tracing is always right
        LOG.info("a model is evaluated without tracing", exc_info=True)
        return program
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    forwards: list[Program] = [without_branches(graph).forward]
    if chunk.alphas.device.type == "cpu":
        try:
            forwards.insert(0, _scripted(graph, chunk))
        except Exception:
            LOG.info("a model is evaluated without TorchScript", exc_info=True)
    others = chunk._replace(alphas=0.11 + 0.37 * chunk.alphas)
    for forward in forwards:  # TorchScript accepts lists that it cannot run, say with a layer of one output
        listed: Program = torch.inference_mode()(forward)
        if _agree(listed, program, others):
            return listed
    LOG.warning("a model is evaluated without tracing: other points have other answers then")
    return program


def _agree(listed: Program, program: Program, chunk: Chunk) -> bool:
    """Whether both compute the same, up to rounding."""
    try:
        answers = listed(*chunk)
    except Exception:
        LOG.info("what was recorded of a model does not run", exc_info=True)
        return False
    expected = program(*chunk)
    return all(
        torch.allclose(answer, right, rtol=0, atol=AGREEMENT * _largest(right), equal_nan=True)
        for answer, right in zip(answers, expected, strict=True)
    )


def _largest(answer: Tensor) -> float:
    """The largest magnitude in an answer, without what is infinite or not a number."""
    return float(answer.abs().nan_to_num(0.0, posinf=0.0).max())


def _scripted(graph: fx.GraphModule, chunk: Chunk) -> Program:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(graph, tuple(chunk), check_trace=False)  # type: ignore[no-untyped-call]
        program: Program = torch.jit.freeze(script.eval(), optimize_numerics=False)
    return program

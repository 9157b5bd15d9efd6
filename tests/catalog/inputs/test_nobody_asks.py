"""Outside of its own files nobody asks which kind of input a model has: the kind is an object, and is asked instead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import service
from service.artefacts.inputs.registry import KINDS, OF_CAUSAL_NETWORKS
from service.catalog.inputs.registry import AnyAttributions, DeclaredInputs

SERVICE = Path(service.__file__).parent
HOMES = (SERVICE / "catalog" / "inputs", SERVICE / "artefacts" / "inputs")
INPUTS = get_args(get_args(DeclaredInputs)[0])
WORDS = {get_args(kind.model_fields["kind"].annotation)[0] for kind in INPUTS}
CLASSES = {kind.__name__ for kind in (*INPUTS, *get_args(AnyAttributions))} | {
    "InputKind",
    "Spans",
    "TableEncoding",
    "TokenEncoding",
}
FILES = {kind.__module__ for kind in INPUTS}


def questions(tree: ast.AST) -> Iterator[str]:
    """What in a module asks for the kind of inputs."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in CLASSES:
                yield name
            case ast.ImportFrom(module=module) if module in FILES:
                yield from (f"{module}.{one.name}" for one in node.names if one.name in CLASSES)
            case ast.Compare(left=left, comparators=others):
                compared = [left, *others]
                yield from (ast.unparse(node) for one in compared if _is_kind_of_inputs(one) or _is_word(one))
            case ast.MatchValue(value=value) if _is_word(value):
                yield ast.unparse(node)
            case ast.Match(subject=subject) if _is_kind_of_inputs(subject):
                yield f"match {ast.unparse(subject)}"


def _is_kind_of_inputs(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "kind" and "inputs" in ast.unparse(node.value)


def _is_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in WORDS


def test_nobody_asks_which_kind_of_input_it_is() -> None:
    asking = {
        f"{path.relative_to(SERVICE)}: {question}"
        for path in SERVICE.rglob("*.py")
        if not any(path.is_relative_to(home) for home in HOMES)
        for question in questions(ast.parse(path.read_text()))
    }
    assert asking == set()


ASKING = [
    "isinstance(inputs, TabularInputs)",
    "isinstance(x, (int, manifest.ImageInputs))",
    "manifest.inputs.kind == other",
    "kind in ('a', 'b') or 'tokens' == kind",
    "match inputs:\n    case TokenInputs(): ...",
    "match kind:\n    case 'image': ...",
    "match version.manifest.inputs.kind:\n    case x: ...",
    "from service.catalog.inputs.tokens import TokenInputs",
    "def f(x: PixelAttributions): ...",
]


@pytest.mark.parametrize("code", ASKING)
def test_a_question_is_seen(code: str) -> None:
    assert [*questions(ast.parse(code))]


def test_every_kind_is_known_to_the_worker() -> None:
    assert {*KINDS, *OF_CAUSAL_NETWORKS} == WORDS == {"tabular", "image", "tokens", "series", "prompt"}

"""The operators that a gradient cannot be taken through, and why not: one plain sentence for each."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto

from service.errors import CatalogError

_STEPS = "its result jumps, and has no slope anywhere else"
PLACES = "the place of an element is no number that could grow a little"
_TREES = "an ensemble of trees is a step function, without a slope"
_BRANCHES = "which branch is taken depends on the input's values"
_LOOPS = "loops are not unrolled here; export the model without them"
_CHANCE = "its result is random"
TRAINING = (
    "is as it is in training, where an answer depends on chance or on the other rows; export the model evaluating"
)

REASONS = {
    **dict.fromkeys(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"), _TREES),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Unique", "NonMaxSuppression"), PLACES),
    **dict.fromkeys(("Binarizer", "Hardmax", "OneHot", "OneHotEncoder", "LabelEncoder", "CategoryMapper"), _STEPS),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), _LOOPS),
    "If": _BRANCHES,
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _CHANCE),
    **dict.fromkeys(("Multinomial", "Bernoulli"), _CHANCE),
    "ZipMap": "its result is a dictionary; export the model without it (zipmap=False)",
}
"""By the operator's name; no two domains share one."""


def refuse_undifferentiable(nodes: Iterable[NodeProto]) -> None:
    """Raises CatalogError for the first operator that has no gradient."""
    for node in nodes:
        if node.op_type in REASONS:
            raise CatalogError(f"{described(node)} cannot be differentiated: {REASONS[node.op_type]}")
        if node.op_type == "BatchNormalization" and _is_in_training(node):
            raise CatalogError(f"{described(node)} {TRAINING}")


def _is_in_training(node: NodeProto) -> bool:
    """Whether a batch normalisation takes the mean of the rows: an option says so, or outputs before version 14."""
    options = {one.name: one.i for one in node.attribute}
    return bool(options.get("training_mode")) or sum(bool(name) for name in node.output) > 1


def described(node: NodeProto) -> str:
    """The operator and its node's name, or its result's where the exporter gave it none."""
    return f"{node.op_type} ({node.name or node.output[0]!r})"

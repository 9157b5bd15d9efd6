"""Kinds of output: what each says of targets, predictions, what is adverse, and what review rules read."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter, ValidationError

import service
from service.access.permissions import Policy
from service.answers.disclosure import limited_prediction
from service.answers.encoding import encode
from service.answers.reading import read
from service.catalog.outputs.declaration import Outputs
from service.catalog.outputs.kind import KnownOutputs, OutputKind
from service.catalog.outputs.predictions import AnyPrediction, prediction_kind, target_kind
from service.catalog.outputs.values import Values
from service.catalog.review_rules import Review, parts_of
from service.domain import Contrast, Measure, OutputSpace, Similarity, Target
from service.errors import InvalidRequest

P, Z, V, S = OutputSpace.PROBABILITY, OutputSpace.LOGIT, OutputSpace.VALUE, OutputSpace.SIMILARITY
CLASSES = {"labels": ["a", "b", "c"], "link": "softmax", "adverse": "c"}
LABELS = {"kind": "labels", "labels": ["a", "b", "c"], "thresholds": {"b": 0.2}, "adverse": "b"}
VALUES = {
    "kind": "values",
    "values": [{"name": "price", "unit": "USD"}, {"name": "days"}],
    "adverse": {"above": 30, "value": "days"},
}
EMBEDDING = {"kind": "embedding", "dimensions": 3}
SCORE = {"kind": "values", "values": [{"name": "score", "unit": "points"}], "adverse": {"below": 600}}


def declared(declaration: dict[str, Any]) -> OutputKind:
    kind: OutputKind = TypeAdapter(Outputs).validate_python(declaration)
    return kind


def test_a_manifest_that_names_no_kind_declares_classes() -> None:
    assert declared(CLASSES) == declared({"kind": "classes", **CLASSES})


def test_what_tells_outputs_apart_is_their_link_and_spaces() -> None:
    one_logit = {"labels": ["a", "b"], "link": "sigmoid"}
    kinds = [declared(each) for each in (CLASSES, one_logit, LABELS, VALUES, EMBEDDING)]
    words = ["softmax", "softmax, of one logit", "sigmoid", "identity", "unit length"]
    assert [one.identity for one in kinds] == words
    assert [[one.is_comparable_with(other) for other in kinds] for one in kinds] == [
        [True, True, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, False],
        [False, False, False, False, True],
    ]


@pytest.mark.parametrize(
    ("declaration", "asked", "target"),
    [
        (CLASSES, "predicted", None),
        (CLASSES, "b", 1),
        (CLASSES, 2, 2),
        (CLASSES, {"label": "c", "rather_than": "a"}, Contrast(2, 0)),
        (CLASSES, {"label": 1, "rather_than": "a"}, Contrast(1, 0)),
        (LABELS, "predicted", None),
        (LABELS, "b", 1),
        (VALUES, "days", 1),
        (VALUES, "predicted", 1),
        (VALUES, 0, 0),
        (SCORE, "predicted", 0),
        (SCORE, "score", 0),
        (EMBEDDING, {"similar_to": [1, 0.5, -2]}, Similarity((1.0, 0.5, -2.0), Measure.COSINE)),
        (EMBEDDING, {"similar_to": [0, 0, 0], "measure": "dot"}, Similarity((0.0, 0.0, 0.0), Measure.DOT)),
    ],
)
def test_targets_that_can_be_asked_for(declaration: dict[str, Any], asked: object, target: object) -> None:
    assert declared(declaration).read_target(asked) == target


@pytest.mark.parametrize(
    ("declaration", "asked", "sentence"),
    [
        (CLASSES, "d", "is not a label; the labels are a, b, c, predicted"),
        (CLASSES, {"label": "a", "rather_than": "a"}, "is the label itself"),
        (CLASSES, {"label": "a", "rather_than": "d"}, "'d' is not a label"),
        (LABELS, {"label": "a", "rather_than": "b"}, "each label is right or wrong on its own"),
        (VALUES, {"label": "price", "rather_than": "days"}, "these are values, so name one"),
        ({**VALUES, "adverse": None}, "predicted", "name one of the values price, days"),
        (VALUES, 2, "is not a value's index; it must lie between 0 and 1"),
        (VALUES, "prize", "did you mean price?"),
        (VALUES, {"label": "price", "rather_than": "days"}, "name one of them: price, days"),
        (SCORE, 1, "is not a value's index; it must be 0"),
        (EMBEDDING, "predicted", "say what the instance is to be similar to"),
        (EMBEDDING, {"similar_to": [1.0, math.inf, 0.0]}, "no list of 3 finite numbers"),
        (EMBEDDING, {"similar_to": [0.0, 0.0, 0.0]}, "which has no direction; take the measure `dot`"),
        (EMBEDDING, {"similar_to": [1.0, 0.0, 0.0], "measure": "cosinus"}, "the measures are cosine, dot"),
    ],
)
def test_targets_that_cannot_be_are_refused_with_a_sentence(
    declaration: dict[str, Any], asked: object, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence.replace("?", r"\?")) as refusal:
        declared(declaration).read_target(asked)
    assert refusal.value.faults[0].pointer is not None
    assert refusal.value.faults[0].pointer.startswith("/parameters/target")


@pytest.mark.parametrize("number", ["x", "nan", "inf"])
def test_a_bound_that_is_no_number_is_refused(number: str) -> None:
    known = KnownOutputs(("price", "days"), (), f"price above {number}", {})
    with pytest.raises(ValueError, match=f"'{number}' is no number; bad news is said as in 'price above 0.5'"):
        Values.declaration(known)


def shown(prediction: AnyPrediction) -> dict[str, Any]:
    """As a reply has it."""
    content: dict[str, Any] = orjson.loads(encode(prediction))
    return content


def test_predictions_say_what_the_outputs_mean() -> None:
    assert vars(declared(CLASSES).prediction_item([0.2, 0.7, 0.1], P)) == {
        "label": "b",
        "index": 1,
        "outputs": (0.2, 0.7, 0.1),
        "output_space": "probability",
    }
    several = declared(LABELS).prediction_item([0.9, 0.3, 0.4], P)
    assert (several.labels, several.label, several.recorded_label) == (("a", "b"), "a", "a")
    assert several.further_labels == ("b",)
    none = declared(LABELS).prediction_item([0.1, 0.1, 0.4], P)
    assert vars(none) == {"labels": (), "outputs": (0.1, 0.1, 0.4), "output_space": "probability"}
    values = declared(VALUES).prediction_item([231000.0, 12.0], V)
    assert vars(values) == {
        "values": {"price": 231000.0, "days": 12.0},
        "units": {"price": "USD", "days": "1"},
        "output_space": "value",
    }
    assert (values.recorded_label, values.further_labels) == (None, ())
    assert declared(VALUES).prediction_item(None, V).values == {}
    embedding = declared(EMBEDDING).prediction_item([0.5, -1.0, 0.25], S)
    told = {"dimensions": 3, "output_space": "similarity"}
    assert vars(embedding) == {"embedding": (0.5, -1.0, 0.25), **told}
    assert vars(embedding.brief()) == told
    assert vars(declared(EMBEDDING).prediction_item(None, S)) == {"embedding": (), **told}


@pytest.mark.parametrize(
    "declaration", [CLASSES, LABELS, VALUES, EMBEDDING], ids=["classes", "labels", "values", "embedding"]
)
def test_what_was_recorded_is_read_as_what_it_was(declaration: dict[str, Any]) -> None:
    kind = declared(declaration)
    prediction = kind.prediction_item([0.5, 0.25, 0.125][: len(kind.names)], kind.default_space)
    written = orjson.loads(encode(prediction))
    assert read(prediction_kind(written), written) == prediction
    similar: list[Target] = [Similarity((1.0, 2.0, 3.0), measure) for measure in Measure]
    targets: list[Target] = (
        similar if declaration is EMBEDDING else [0, 1, *([Contrast(2, 0)] if declaration is CLASSES else [])]
    )
    for target in targets:
        item = kind.target_item(target)
        written = orjson.loads(encode(item))
        assert read(target_kind(written), written) == item


def test_values_are_hidden_and_rounded_as_outputs_are() -> None:
    prediction = declared(VALUES).prediction_item([231456.0, 12.5], V)
    assert limited_prediction(prediction, Policy(outputs=False)).values == {}
    rounded = limited_prediction(prediction, Policy(digits=2))
    assert rounded.values == {"price": 230000.0, "days": 0.0}
    assert prediction.units == rounded.units


def test_what_a_similarity_refers_to() -> None:
    """An instance, whatever it looks like, unless it is a list of as many numbers as the model answers."""
    kind = declared(EMBEDDING)
    for instance in ({"text": "words"}, [1, 2], [[1, 2, 3]], {"image": "..."}):
        target = {"similar_to": instance, "measure": "dot"}
        assert kind.reference_in(target) == ("similar_to", instance)
        assert kind.with_reference(target, (1.0, 2.0, 3.0)) == {**target, "similar_to": [1.0, 2.0, 3.0]}
        assert not kind.explains_reference(target)
        assert kind.explains_reference({**target, "side": "reference"})
    numbers = {"similar_to": [1, 2, 3]}
    assert kind.reference_in(numbers) is None
    assert kind.reference_in("predicted") is None
    with pytest.raises(InvalidRequest, match="both sides are explained where"):
        kind.reference_in({**numbers, "side": "reference"})
    assert declared(CLASSES).reference_in(numbers) is None


def test_labels_over_their_thresholds_are_the_same_in_both_spaces() -> None:
    kind = declared(LABELS)
    probabilities = [0.6, 0.21, 0.49]
    logits = [math.log(p / (1 - p)) for p in probabilities]
    assert kind.labels_of(probabilities, P) == kind.labels_of(logits, Z) == {"a", "b"}
    assert kind.quantity("probability", "b", logits, Z) == pytest.approx(0.21)
    assert kind.decision([0.1, 0.1, 0.1], P) == "no label"


def test_what_is_adverse_has_a_sign() -> None:
    classes, labels, values, score = (declared(one) for one in (CLASSES, LABELS, VALUES, SCORE))
    assert [classes.adverse_sign(target) for target in (2, 0, Contrast(2, 1), Contrast(1, 2), Contrast(0, 1))] == [
        1, None, 1, -1, None,
    ]  # fmt: skip
    assert [labels.adverse_sign(target) for target in (0, 1)] == [None, 1]
    assert [values.adverse_sign(target) for target in (0, 1)] == [None, 1]
    assert score.adverse_sign(0) == -1
    assert (score.is_adverse([599.0], V), score.is_adverse([600.0], V)) == (True, False)
    assert (values.is_adverse([1e6, 31.0], V), values.decision([0.0, 30.0], V)) == (True, "days not above 30")
    assert labels.is_adverse([0.9, 0.3, 0.1], P)
    assert (values.usual_target, classes.usual_target) == ("days", "c")


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ({**VALUES, "adverse": {"above": 1}}, "name one of price, days as `value`"),
        ({**VALUES, "adverse": {"above": 1, "below": 0, "value": "days"}}, "either `above` or `below`"),
        ({**VALUES, "adverse": {"above": 1, "value": "weeks"}}, "'weeks' is not among the values"),
        ({**VALUES, "default_space": "logit"}, "no output space 'logit' of values"),
        ({**LABELS, "thresholds": {"d": 0.5}}, "'d' is not among the labels"),
        ({**LABELS, "thresholds": {"a": 1.5}}, "less than 1"),
        ({**CLASSES, "tensors": {"value": "y"}}, "no output space 'value' of classes"),
        ({**SCORE, "values": [{"name": "x"}, {"name": "x"}], "adverse": None}, "there twice"),
        ({"kind": "boxes"}, "boxes"),
        ({**EMBEDDING, "dimensions": 0}, "greater than 0"),
        ({**EMBEDDING, "default_space": "value"}, "no output space 'value' of embedding"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(declaration: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        declared(declaration)


@pytest.mark.parametrize(
    ("declaration", "outputs", "space", "rule", "fires"),
    [
        (CLASSES, [0.2, 0.7, 0.1], P, "label == b", True),
        (CLASSES, [0.2, 0.7, 0.1], P, "label != b", False),
        (CLASSES, [0.2, 0.7, 0.1], P, "probability(c) >= 0.1", True),
        (CLASSES, [1.0, 2.0, 1.0], Z, "probability < 0.6", True),
        (CLASSES, [0.45, 0.5, 0.05], P, "margin < 0.1", True),
        (LABELS, [0.9, 0.3, 0.1], P, "label == b", True),
        (LABELS, [0.9, 0.3, 0.1], P, "label == c", False),
        (LABELS, [0.0, 9.0, 0.0], Z, "probability(b) > 0.99", True),
        (VALUES, [5e5, 3.0], V, "value(price) > 400000", True),
        (SCORE, [610.0], V, "value < 600", False),
    ],
)
def test_review_rules_read_the_outputs(
    declaration: dict[str, Any], outputs: list[float], space: OutputSpace, rule: str, fires: bool
) -> None:
    kind = declared(declaration)
    review = Review.model_validate({"rules": {"flag": rule}})
    figures: dict[str, Any] = {"label": kind.labels_of(outputs, space)}
    for quantity in review.quantities - {"label"}:
        kind.check_quantity(*parts_of(quantity))
        figures[quantity] = kind.quantity(*parts_of(quantity), outputs, space)
    assert review.all_rules["flag"].fires(figures) is fires


@pytest.mark.parametrize(
    ("declaration", "quantity", "of"),
    [
        (CLASSES, "value", None),
        (CLASSES, "probability", "d"),
        (CLASSES, "margin", "a"),
        (LABELS, "margin", None),
        (VALUES, "label", "price"),
        (VALUES, "value", None),
        (VALUES, "value", "weeks"),
        (VALUES, "probability", None),
        (EMBEDDING, "value", None),
        (EMBEDDING, "label", "a"),
    ],
)
def test_quantities_that_a_kind_does_not_have_are_refused(
    declaration: dict[str, Any], quantity: str, of: str | None
) -> None:
    with pytest.raises(ValueError, match=r"`|not among|are"):
        declared(declaration).check_quantity(quantity, of)


KINDS = {"Classes", "Labels", "Values", "Embedding"}
WORDS = {"classes", "labels", "values", "embedding"}
SERVICE = Path(service.__file__).parent


def test_nobody_outside_asks_which_kind_of_output_it_is() -> None:
    """No `isinstance` of a kind, no `match` on one, and no comparison with a kind's word or of somebody's `kind`."""
    found = []
    for path in SERVICE.rglob("*.py"):
        if path.is_relative_to(SERVICE / "catalog" / "outputs"):
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        found += [f"{path.relative_to(SERVICE)}:{getattr(node, 'lineno', 0)}" for node in nodes if _asks(node)]
    assert not found


def _asks(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
            return bool(KINDS & {one.id for one in ast.walk(kinds) if isinstance(one, ast.Name)})
        case ast.MatchClass(cls=ast.Name(id=name)):
            return name in KINDS
        case ast.Compare():
            sides = [node.left, *node.comparators]
            names = {one.id for side in sides for one in ast.walk(side) if isinstance(one, ast.Name)}
            words = {one.value for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)}
            of_outputs = any(
                isinstance(one, ast.Attribute)
                and one.attr == "kind"
                and isinstance(one.value, ast.Name | ast.Attribute)
                and "outputs" in ast.unparse(one.value)
                for side in sides
                for one in ast.walk(side)
            )
            is_kind = any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)
            return bool(KINDS & names) or of_outputs or (is_kind and bool(WORDS & words))
    return False


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(outputs, Values)",
        "isinstance(outputs, (int, Labels))",
        "manifest.outputs.kind == 'values'",
        "kind.kind in ('labels', 'x')",
        "type(outputs) is Classes",
    ],
)
def test_the_question_is_seen_in_every_form(text: str) -> None:
    assert any(_asks(node) for node in ast.walk(ast.parse(text)))

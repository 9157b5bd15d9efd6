"""ONNX files that answer embeddings, of tables and of images: recognised, or said to be, and explained as alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torch.nn import functional

from service.catalog.inputs.kind import Row
from service.catalog.outputs.embedding import Embedding
from service.domain import OutputSpace, Similarity
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask
from service.lifecycle.checking.comparison import compare
from service.lifecycle.checking.trial import load_trial
from service.usecases.planning import Parameters
from service.usecases.references import plans_of, referred_rows, with_instances_read
from tests.lifecycle.adding.test_exports import add, export, layers, usual

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """With another name for its output."""
    (before,) = (value.name for value in model.graph.output)
    for node in model.graph.node:
        node.output[:] = [name if output == before else output for output in node.output]
    model.graph.output[0].name = name
    return model


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 6)
    )


def no_such_question(question: str, default: str) -> str:
    assert "are they logits" not in question
    assert "bad news" not in question
    assert "dimensions, in the order" not in question
    return default


def answering(word: str) -> Ask:
    return lambda question, default: word if "are they logits" in question else default


WAYS = {
    "by the name of its output": (no_such_question, "image_embeds", False),
    "as the option says": (no_such_question, "output", True),
    "as it is answered": (answering("embedding"), "output", False),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_embedding_is_known(way: str, tmp_path: Path) -> None:
    ask, name, said = WAYS[way]
    network, rows = layers(4, 8, 5), torch.randn(60, 4)
    added = add(named(export(network, 5, 4), name), tmp_path, rows.numpy(), ask, is_embedding=said)
    outputs = added.trial.manifest.outputs
    assert isinstance(outputs, Embedding)
    assert outputs.dimensions == 5
    assert added.how.endswith(f"the embedding is '{name}'")
    answered = added.trial.deployed(rows.numpy())[OutputSpace.SIMILARITY]
    assert answered == pytest.approx(network(rows).detach().numpy(), abs=1e-5)
    assert added.report.failed == []
    assert added.explanation.output == pytest.approx(1.0), "the example is like itself"


def test_numbers_that_nobody_explains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="an embedding, with --outputs embedding; a detector is not served"):
        add(export(layers(4, 8), 5, 4), tmp_path, ask=usual)
    with pytest.raises(CatalogError, match="nothing of an embedding is bad news"):
        add(export(layers(4, 8), 5, 4), tmp_path, is_embedding=True, adverse="dimension_1")


class Alike(nn.Module):
    """The cosine of both images' embeddings."""

    def __init__(self, network: nn.Module, other: Tensor) -> None:
        super().__init__()
        self.network, self.other = network, other

    def forward(self, images: Tensor) -> Tensor:
        return functional.cosine_similarity(self.network(images), self.network(self.other), dim=1)


def test_images_are_compared_with_images(tmp_path: Path) -> None:
    """Nested lists are an instance; the artefact embeds it, and both sides are explained as Captum explains them."""
    network, images = pictures(), np.random.default_rng(0).uniform(0, 1, (20, *SHAPE)).astype(np.float32)
    trial = load_trial(add(named(export(network, 5, *SHAPE), "embedding"), tmp_path, images).folder, CPU)
    one, other = (image.astype(float).tolist() for image in images[:2])
    target = {"similar_to": other}
    asked = Parameters(targets=[target, {**target, "side": "reference"}], tolerance=1e-3)
    parameters, rows = with_instances_read(trial.version, asked), [Row(tuple(images[0].ravel().tolist()))]
    needed = referred_rows(trial.version, rows, parameters)
    embedded = trial.deployed(np.array(needed))[OutputSpace.SIMILARITY].tolist()
    planned = plans_of(trial.version, rows, parameters, dict(zip(needed, embedded, strict=True)))
    explanations = trial.explained_together([plan for _, plan in planned])

    center = torch.tensor(trial.baseline_rows().mean(axis=0).reshape(1, *SHAPE))
    network.double().requires_grad_(requires_grad=False)
    for (row, plan), explanation, own, their in zip(planned, explanations, (one, other), (other, one), strict=True):
        assert row.values == plan.input == tuple(np.ravel(own).tolist())
        assert isinstance(plan.target, Similarity)
        wrapped = Alike(network, torch.tensor(their, dtype=torch.float64)[None])
        image = torch.tensor(own, dtype=torch.float64)[None]
        theirs = IntegratedGradients(wrapped).attribute(image, center, n_steps=200, method="gausslegendre").numpy()[0]
        assert explanation.converged
        assert explanation.output == pytest.approx(float(wrapped(image)), abs=1e-5)
        values = np.array(explanation.attributions).reshape(explanation.shape)
        assert values == pytest.approx(theirs.reshape(values.shape), abs=1e-3 * np.abs(theirs).sum())


def test_two_versions_are_compared_by_their_own_similarities(tmp_path: Path) -> None:
    network, rows = layers(4, 8, 5), torch.randn(60, 4)
    added = [add(export(network, 5, 4), tmp_path, rows.numpy(), is_embedding=True) for _ in range(2)]
    first, second = (load_trial(each.folder, CPU) for each in added)
    comparison = compare(first, second, 15, 0)
    assert comparison.correlation == pytest.approx(1.0)
    assert comparison.agreement.apart < 1e-6

"""The twin of what an exporter wrote answers as the artefact does in ONNX Runtime, with the original's gradients."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, PolynomialFeatures, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, fx, nn
from torch.nn import functional

from service.artefacts.inputs.embeddings import find_token_embedding
from service.artefacts.onnx.twins import build_twin
from service.engine.kernels.piecewise import PiecewiseLinear
from service.errors import CatalogError

TF2ONNX = Path(__file__).parent / "tf2onnx"
TOLERANCE = 1e-4
VOCABULARY, LENGTH, WIDTH = 30, 6, 16
Array = NDArray[Any]


@pytest.fixture(autouse=True)
def _exporting() -> Iterator[None]:
    """The exporters use what they themselves have deprecated."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Residual(nn.Module):
    """A convolutional network with a residual block, pools of three kinds and a batch normalisation that has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.pool, self.last = nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1), nn.Linear(16, 4)
        assert self.norm.running_mean is not None
        self.norm.running_mean.normal_()

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.pool(functional.silu(self.stem(rows)))
        hidden = functional.relu(self.other(functional.relu(self.norm(self.one(hidden)))) + hidden)
        pooled = functional.adaptive_avg_pool2d(hidden, 1), functional.adaptive_max_pool2d(hidden, 1)
        logits: Tensor = self.last(torch.cat(pooled, dim=1).flatten(1))
        return logits


class Encoder(nn.Module):
    """torch's own encoder layer over patches, behind a class token that is repeated for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, activation="gelu", batch_first=True)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, rows: Tensor) -> Tensor:
        patches = torch.cat([self.token.expand(rows.shape[0], -1, -1), rows], dim=1) + self.place
        logits: Tensor = self.last(self.layer(patches)[:, 0])
        return logits


class Attention(nn.Module):
    """Tokens, positions counted in the graph, and an attention written by hand under a mask that is made there too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.heads, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.behind(self.tokens(rows))

    def behind(self, embedded: Tensor) -> Tensor:
        """The logits, from the tokens' embeddings [N, length, width]."""
        count, length, _ = embedded.shape
        hidden = embedded + self.places(torch.arange(length).unsqueeze(0).expand(count, length))
        query, key, value = self.heads(hidden).view(count, length, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.triu(torch.full((length, length), -torch.inf), 1)
        attended = torch.softmax(query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5 + mask, dim=-1) @ value
        hidden = self.norm(hidden + self.out(attended.transpose(1, 2).reshape(count, length, -1)))
        logits: Tensor = self.last(hidden.mean(1))
        return logits


class Attending(Attention):
    """The same with torch's own attention."""

    def behind(self, embedded: Tensor) -> Tensor:
        """The logits, from the tokens' embeddings [N, length, width]."""
        count, length, _ = embedded.shape
        query, key, value = self.heads(embedded).view(count, length, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        logits: Tensor = self.last(self.norm(attended.transpose(1, 2).reshape(count, length, -1)).amax(1))
        return logits


class ChannelsLast(nn.Module):
    """A normalisation over the channels, which torch's exporter leaves a view of the memory behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.norm(self.first(rows).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        logits: Tensor = self.last(functional.adaptive_avg_pool2d(hidden, 1).flatten(1))
        return logits


def perceptron() -> nn.Module:
    """With layer normalisation and both kinds of GELU."""
    layers = nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU("tanh"), nn.Linear(16, 3)
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (6,)),
    "residual": (Residual, (3, 16, 16)),
    "encoder": (Encoder, (LENGTH - 1, WIDTH)),
    "attention": (Attention, (LENGTH,)),
    "attending": (Attending, (LENGTH,)),
    "channels last": (ChannelsLast, (3, 6, 6)),
}


def rows_for(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(VOCABULARY, (5, *shape)) if isinstance(network, Attention) else torch.randn(5, *shape)


def exported(network: nn.Module, rows: Tensor, *, dynamo: bool, opset: int) -> onnx.ModelProto:
    """The network's ONNX graph, for any number of rows."""
    names: dict[str, Any] = {"input_names": ["rows"], "output_names": ["logits"], "opset_version": opset}
    if dynamo:
        shapes = ({0: torch.export.Dim("count")},)
        program = torch.onnx.export(network, (rows,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
        assert program is not None
        graph: onnx.ModelProto = program.model_proto
        return graph
    content: Any = io.BytesIO()
    torch.onnx.export(network, (rows,), content, dynamo=False, dynamic_axes={"rows": {0: "count"}}, **names)
    return onnx.load_model_from_string(content.getvalue())


def answers(model: onnx.ModelProto, rows: Array, *tensors: str) -> list[Array]:
    """Tensors of the graph, as ONNX Runtime computes them."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    session = onnxruntime.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(list(tensors), {session.get_inputs()[0].name: rows})
    return found


def gradient(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Of the outputs, each weighted by its number, with respect to the rows."""
    rows = rows.detach().requires_grad_()
    outputs = function(rows)
    weights = torch.arange(1.0, outputs.shape[1] + 1)
    (result,) = torch.autograd.grad((outputs * weights).sum(), rows)
    return result


def assert_twin(twin: fx.GraphModule, rows: Tensor, expected: Array) -> None:
    """For all the rows and for the first alone, in torch's own operators."""
    for part, answer in ((rows, expected), (rows[:1], expected[:1])):
        np.testing.assert_allclose(twin(part).detach().numpy(), answer, rtol=TOLERANCE, atol=TOLERANCE)
    targets = [node.target for node in twin.graph.nodes if node.op == "call_function"]
    modules = [type(module) for name, module in twin.named_modules() if name]
    origins = {str(found.__module__).partition(".")[0] for found in (*targets, *modules) if found.__module__}
    assert origins <= {"torch", "_operator", "builtins"}


# The newer exporter takes seconds for each; what is special about these two shows with the older one.
OF_BOTH_EXPORTERS = [
    *product(NETWORKS, [(False, 14), (False, 20)]),
    *((name, (True, 20)) for name in NETWORKS if name not in ("perceptron", "attending")),
    *(pytest.param(name, (True, 20), marks=pytest.mark.slow) for name in ("perceptron", "attending")),
]


@pytest.mark.parametrize(("name", "exporter"), OF_BOTH_EXPORTERS)
def test_a_network_exported_from_torch_has_a_twin(name: str, exporter: tuple[bool, int]) -> None:
    (make, shape), (dynamo, opset) = NETWORKS[name], exporter
    network = make().eval()
    rows = rows_for(network, shape)
    model = exported(network, rows, dynamo=dynamo, opset=opset)
    (expected,) = answers(model, rows.numpy(), "logits")
    start, behind = "rows", network.forward
    if isinstance(network, Attention):
        start, table = find_token_embedding(model, "rows")
        rows, behind = torch.from_numpy(table)[rows], network.behind
    twin = build_twin(model, start, "logits", shape)

    assert_twin(twin, rows, expected)
    torch.testing.assert_close(gradient(twin, rows), gradient(behind, rows), rtol=TOLERANCE, atol=TOLERANCE)


def test_an_operator_that_onnx_defines_by_others_is_taken_apart() -> None:
    """From version 23 on attention is one operator."""
    network = Attending().eval()
    tokens = rows_for(network, (LENGTH,))
    model = exported(network, tokens, dynamo=True, opset=23)
    assert "Attention" in {node.op_type for node in model.graph.node}
    start, table = find_token_embedding(model, "rows")
    assert_twin(
        build_twin(model, start, "logits"), torch.from_numpy(table)[tokens], *answers(model, tokens.numpy(), "logits")
    )


@pytest.mark.parametrize(("name", "shape"), [("perceptron", (6,)), ("convolutional", (3, 16, 16))])
def test_a_network_exported_from_keras_has_a_twin(name: str, shape: tuple[int, ...]) -> None:
    """Whose gradients are those of the file: differences over a thousandth, of twice as many rows, in ONNX Runtime."""
    model = onnx.load(TF2ONNX / f"{name}.onnx")
    logits = before(model, "Softmax")
    rows = torch.randn(5, *shape)
    twin = build_twin(model, "rows", logits, shape)
    assert_twin(twin, rows, *answers(model, rows.numpy(), logits))

    direction, step = torch.randn(5, *shape), 1e-3
    ends = [answers(model, (rows + side * step * direction).numpy(), logits)[0] for side in (1, -1)]
    slopes = (ends[0] - ends[1]).astype(np.float64) @ np.arange(1.0, ends[0].shape[1] + 1) / (2 * step)
    found = (gradient(twin, rows) * direction).flatten(1).sum(1)
    np.testing.assert_allclose(found, slopes, rtol=0.01, atol=0.01)


def iris() -> tuple[Array, Array]:
    rows, labels = load_iris(return_X_y=True)
    return rows.astype(np.float32), labels


def fitted(*steps: BaseEstimator, labels: Array | None = None, **options: Any) -> tuple[Any, onnx.ModelProto]:
    """A pipeline and what skl2onnx makes of it."""
    skl2onnx = pytest.importorskip("skl2onnx")
    types = pytest.importorskip("skl2onnx.common.data_types")
    rows, species = iris()
    pipeline = make_pipeline(*steps).fit(rows, species if labels is None else labels)
    settings = {id(steps[-1]): {"zipmap": False, **options}}
    given = [("rows", types.FloatTensorType([None, rows.shape[1]]))]
    return pipeline, skl2onnx.convert_sklearn(pipeline, initial_types=given, options=settings)


def before(model: onnx.ModelProto, operator: str) -> str:
    """The tensor that the last such operator takes."""
    names: list[str] = [node.input[0] for node in model.graph.node if node.op_type == operator]
    return names[-1]


PREPARATIONS: dict[str, tuple[BaseEstimator, ...]] = {
    "scaled": (StandardScaler(),),
    "imputed and normalised": (SimpleImputer(), StandardScaler(), Normalizer()),
    "polynomial": (PolynomialFeatures(2), StandardScaler()),
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_pipeline_of_scikit_learn_is_cut_before_its_softmax(name: str) -> None:
    model = fitted(*PREPARATIONS[name], MLPClassifier((8,), max_iter=20, random_state=0))[1]
    rows, _ = iris()
    logits, probabilities = answers(model, rows, before(model, "Softmax"), "probabilities")
    twin = build_twin(model, "rows", before(model, "Softmax"))

    assert_twin(twin, torch.from_numpy(rows), logits)
    softmax = torch.softmax(twin(torch.from_numpy(rows)), dim=1).detach().numpy()
    np.testing.assert_allclose(softmax, probabilities, atol=TOLERANCE)


def test_a_scaled_perceptron_is_piecewise_linear_and_has_its_own_gradients() -> None:
    pipeline, model = fitted(StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0))
    twin = build_twin(model, "rows", before(model, "Softmax"))
    PiecewiseLinear(twin, shape=(4,))
    scaler, perceptron = pipeline[0], pipeline[-1]
    (first, second), (bias, other) = (
        [torch.from_numpy(array).float() for array in arrays] for arrays in (perceptron.coefs_, perceptron.intercepts_)
    )

    def original(rows: Tensor) -> Tensor:
        scaled = (rows - torch.from_numpy(scaler.mean_)) / torch.from_numpy(scaler.scale_)
        return torch.relu(scaled.float() @ first + bias) @ second + other

    rows = torch.from_numpy(iris()[0])
    torch.testing.assert_close(gradient(twin, rows), gradient(original, rows), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_perceptron_of_two_classes_has_one_logit() -> None:
    """Before its sigmoid; the model is only served with a second one beside it."""
    model = fitted(StandardScaler(), MLPClassifier((8,), max_iter=20, random_state=0), labels=iris()[1] == 1)[1]
    rows, _ = iris()
    (logit,) = answers(model, rows, before(model, "Sigmoid"))
    assert logit.shape == (len(rows), 1)
    assert_twin(build_twin(model, "rows", before(model, "Sigmoid")), torch.from_numpy(rows), logit)


def test_a_logistic_regression_is_refused_unless_it_is_exported_with_raw_scores() -> None:
    steps = StandardScaler(), LogisticRegression()
    with pytest.raises(CatalogError, match=r"LinearClassifier .* raw scores"):
        build_twin(fitted(*steps)[1], "rows", "probabilities")

    model = fitted(*steps, raw_scores=True)[1]
    scores = model.graph.output[1].name
    model.graph.node.append(helper.make_node("Softmax", [scores], ["softmax"], axis=1))
    rows, _ = iris()
    assert_twin(build_twin(model, "rows", scores), torch.from_numpy(rows), *answers(model, rows, scores))
    with pytest.raises(CatalogError, match=r"LinearClassifier .* label"):
        build_twin(model, "rows", "label")


def test_trees_and_labels_are_refused() -> None:
    with pytest.raises(CatalogError, match=r"TreeEnsembleClassifier .* trees is a step function"):
        build_twin(fitted(DecisionTreeClassifier(max_depth=3))[1], "rows", "probabilities")
    with pytest.raises(CatalogError, match="ArgMax"):
        build_twin(fitted(StandardScaler(), MLPClassifier((8,), max_iter=20))[1], "rows", "label")

"""Texts at their own length: what a row is cut to, that it alone decides it, and that no answer changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from service.artefacts.shared_weights import share_weights
from service.catalog.calibrations import Calibration
from service.domain import BaselineChoice, ChunkShapes, Conditions, Explanation, Floats, Plan, Prediction, Priority
from service.engine.messages import Done, Explain, Predict
from service.engine.protocol import Source
from service.engine.worker import model_kernels
from service.engine.worker.device import put_on_device
from service.engine.worker.device_models import DeviceModels
from service.engine.worker.scheduler import Scheduler
from service.lifecycle.checking.trial import SHAPES, Trial, load_trial
from service.usecases.planning import Parameters, make_plan
from tests.catalog.inputs.test_sequences import WORDS
from tests.catalog.inputs.test_text_models import WIDTH, Encoder, exported, told, write
from tests.engine.conftest import ref_of

LONGEST = 64
LENGTHS = (2, 7, 16, 17, 40, 64)


class LongEncoder(Encoder):
    """The encoder with places for longer texts."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(LONGEST, WIDTH)


class Careless(LongEncoder):
    """Padding takes part in its mean, whatever the mask says."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(input_ids, torch.ones_like(attention_mask), token_type_ids)


def served(folder: Path, network: nn.Module) -> Path:
    return write(folder, exported(network.eval(), dynamo=False), length=LONGEST)


@pytest.fixture(scope="module")
def network() -> LongEncoder:
    torch.manual_seed(1)
    return LongEncoder().eval()


@pytest.fixture(scope="module")
def folder(network: LongEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served(tmp_path_factory.mktemp("models"), network)


@pytest.fixture(scope="module")
def trial(folder: Path) -> Trial:
    torch.set_num_threads(1)
    return load_trial(folder, torch.device("cpu"))


def row_of(count: int, longest: int = LONGEST) -> tuple[float, ...]:
    """A row of so many tokens, two of them special."""
    words = np.random.default_rng(count).integers(5, len(WORDS), count - 2)
    return tuple(map(float, [2, *words, 3])) + (0.0,) * (longest - count)


def plan_of(trial: Trial, count: int, **parameters: object) -> Plan:
    return make_plan(trial.version, row_of(count), Parameters(target="yes", **parameters))  # type: ignore[arg-type]


def integrated(network: Encoder, row: tuple[float, ...], steps: int = 2000) -> Floats:
    """Integrated gradients of the probability of `yes` from the masked row, at the model's whole length, in float64."""
    double = type(network)().double()
    double.load_state_dict(network.state_dict())
    ids = torch.tensor([row]).long()
    masked = torch.where((ids == 0) | (ids == 2) | (ids == 3), ids, 4)
    start, end = double.words(masked).detach(), double.words(ids).detach()
    alphas = (torch.arange(steps, dtype=torch.float64) + 0.5).reshape(-1, 1, 1) / steps
    points = (start + alphas * (end - start)).requires_grad_()
    mask = (ids != 0).long().expand(steps, -1)
    probability = torch.softmax(double.behind(points, mask, torch.zeros_like(mask)), dim=1)[:, 1]
    (gradient,) = torch.autograd.grad(probability.sum(), points)
    attributions: Floats = (gradient.mean(0) * (end - start)[0]).sum(-1).detach().numpy()
    return attributions


@pytest.mark.parametrize(
    ("count", "length"),
    [(2, "x16"), (16, "x16"), (17, "x24"), (24, "x24"), (25, "x32"), (32, "x32"), (33, "x48"), (49, ""), (64, "")],
)
def test_a_row_is_computed_at_the_least_length_that_holds_it(trial: Trial, count: int, length: str) -> None:
    explanation = trial.explained(plan_of(trial, count))
    assert explanation.chunk_rows == f"{SHAPES}{length}"
    assert explanation.shape == (LONGEST,)
    assert told(explanation)[count:].tolist() == [0.0] * (LONGEST - count)


@pytest.mark.parametrize("count", LENGTHS)
def test_its_answer_is_that_of_the_whole_row(network: LongEncoder, trial: Trial, count: int) -> None:
    explanation = trial.explained(plan_of(trial, count))
    ids = torch.tensor([row_of(count)]).long()
    expected = network(ids, (ids != 0).long(), torch.zeros_like(ids))[1].detach().numpy()[0]
    np.testing.assert_allclose(np.array(explanation.outputs), expected, atol=1e-5)
    attributions = integrated(network, row_of(count))
    np.testing.assert_allclose(told(explanation), attributions, atol=1e-3 * np.abs(attributions).sum() + 1e-7)


@pytest.mark.parametrize(("graded", "large"), [(False, False), (True, False), (True, True)])
def test_an_answer_does_not_depend_on_who_shares_its_chunk(
    trial: Trial, folder: Path, monkeypatch: pytest.MonkeyPatch, *, graded: bool, large: bool
) -> None:
    """Bit for bit, among texts of all lengths; also where a question is cut into several chunks, and where there is one
    for every number of rows."""
    if large:
        monkeypatch.setattr(model_kernels, "MAX_RECORDED_VALUES", 1)
    if graded:
        shapes = ChunkShapes(1, 8, graded=True)
        trial = replace(trial, model=put_on_device(folder, torch.device("cpu"), {}, Calibration(shapes)))
        assert trial.explained(plan_of(trial, 7)).chunk_rows == "1..8x16"
    plans = [
        plan_of(trial, count, method=method) for count in LENGTHS for method in ("integrated_gradients", "saliency")
    ]
    alone = [trial.explained(plan) for plan in plans]
    assert together(trial, plans) == alone
    assert together(trial, plans[::-1]) == alone[::-1]


def together(trial: Trial, plans: list[Plan]) -> list[Explanation]:
    return trial.explained_together(plans)


def test_all_that_an_answer_has_by_token_is_whole(trial: Trial) -> None:
    noise = {"kind": "smoothgrad", "samples": 4}
    explanation = trial.explained(plan_of(trial, 7, method="saliency", noise=noise))
    assert len(explanation.standard_error or ()) in (0, LONGEST)
    explanation = trial.explained(plan_of(trial, 7, errors=True))
    assert len(explanation.attribution_errors or ()) == LONGEST
    explanation = trial.explained(plan_of(trial, 7, method="integrated_hessians"))
    assert explanation.interactions is not None
    matrix = np.array(explanation.interactions)
    assert matrix.shape == (LONGEST, LONGEST)
    assert not matrix[7:].any()
    assert not matrix[:, 7:].any()
    np.testing.assert_allclose(matrix.sum(axis=1), told(explanation), atol=1e-6)


def test_input_and_baseline_are_of_one_length(trial: Trial) -> None:
    """Whichever of them is longer decides; padding between tokens is inside the row."""
    plan = plan_of(trial, 7)
    scattered = [*row_of(7)[:6], *[0.0] * 43, 3.0]
    longer = BaselineChoice("own", "none", "sha256:none", 1, (*scattered, *[0.0] * (LONGEST - len(scattered))))
    model = trial.model
    assert model.for_plan(plan).length == 16
    assert model.for_plan(replace(plan, baseline=longer)).length is None
    assert model.for_rows(row_of(7), row_of(20)).length == 24


def computed(models: DeviceModels, request: Explain | Predict) -> Explanation | Prediction:
    scheduler = Scheduler()
    scheduler.add(models.begin(request, 0.0))
    while scheduler:
        scheduler.step()
    (outcome,) = scheduler.outcomes()
    assert isinstance(outcome, Done)
    return outcome.result


def test_a_record_is_repeated_at_the_length_that_it_was_made_at(trial: Trial, folder: Path) -> None:
    """One of before there were lengths was made of whole rows, and is again."""
    models, version = DeviceModels(torch.device("cpu")), ref_of(folder)
    loaded = models.load(version, Source(folder, folder), {}, Calibration(SHAPES))
    assert [shapes.length for shapes in loaded.calibration.cut] == [16, 24, 32, 48]
    plan = plan_of(trial, 7)

    def repeated(shapes: ChunkShapes | None) -> Explanation:
        conditions = None if shapes is None else Conditions(shapes, None)
        request = Explain(1, version, plan, Priority.INTERACTIVE, None, conditions)
        result = computed(models, request)
        assert isinstance(result, Explanation)
        return result

    now = repeated(None)
    assert now == trial.explained(plan)
    assert repeated(ChunkShapes.read(now.chunk_rows)) == now
    before = repeated(ChunkShapes.read("32+128"))
    assert before.chunk_rows == "32+128"
    np.testing.assert_allclose(told(before), told(now), atol=1e-5)
    assert repeated(ChunkShapes.read("8+8x32")).chunk_rows == "8+8x32"
    assert repeated(ChunkShapes.read("8+8x20")).chunk_rows == "8+8x16", "nothing is computed at 20: it is told so"
    plan = plan_of(trial, 50)
    assert repeated(ChunkShapes.read("32+128x16")).chunk_rows == "32+128", "the row has more than 16 tokens"


def test_a_prediction_is_computed_at_the_length_of_its_row(network: LongEncoder, folder: Path) -> None:
    models, version = DeviceModels(torch.device("cpu")), ref_of(folder)
    models.load(version, Source(folder, folder), {}, Calibration(SHAPES))
    for count in LENGTHS:
        prediction = computed(models, Predict(1, version, row_of(count), None))
        assert isinstance(prediction, Prediction)
        ids = torch.tensor([row_of(count)]).long()
        expected = network(ids, (ids != 0).long(), torch.zeros_like(ids))[1].detach().numpy()[0]
        (outputs,) = [values for space, values in prediction.outputs.items() if space == "probability"]
        np.testing.assert_allclose(np.array(outputs), expected, atol=1e-5)


def test_twins_of_other_lengths_share_their_weights() -> None:
    """Those with the same bits, as far as they are worth a hash."""
    torch.manual_seed(0)
    whole = fx.symbolic_trace(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    twin = fx.symbolic_trace(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    twin.load_state_dict(whole.state_dict())
    other = twin.get_parameter("1.weight").detach().clone().requires_grad_(False).add_(1)
    twin.get_submodule("1")._parameters["weight"] = nn.Parameter(other)
    rows = torch.randn(3, 64)
    before = twin(rows)
    share_weights(twin, whole)
    assert twin.get_parameter("0.weight") is whole.get_parameter("0.weight")
    assert twin.get_parameter("1.weight") is not whole.get_parameter("1.weight")
    assert torch.equal(twin(rows), before)


def test_a_graph_of_one_length_is_computed_whole(network: LongEncoder, tmp_path: Path) -> None:
    trial = load_trial(
        write(tmp_path, exported(network, dynamo=True, length=LONGEST), length=LONGEST), torch.device("cpu")
    )
    assert trial.model.cut == []
    assert trial.explained(plan_of(trial, 7)).chunk_rows == str(SHAPES)


def test_a_graph_whose_padding_counts_is_computed_whole(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trial = load_trial(served(tmp_path, Careless()), torch.device("cpu"))
    assert trial.model.cut == []

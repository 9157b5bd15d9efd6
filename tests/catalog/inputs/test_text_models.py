"""A text model as exporters write it: token numbers, a mask and types go in, and tokens are explained."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from service.access.callers import Caller
from service.answers.encoding import encode
from service.answers.explanation import answered
from service.answers.record import ledger_entry
from service.api.baselines import _rows as baseline_rows
from service.catalog.baselines import KeptSets
from service.catalog.inputs.instances import read_instance
from service.cli.baselines import rows_for
from service.domain import Context, Explanation, Floats, Plan
from service.errors import CatalogError, InvalidRequest
from service.ledger.entries import Entry
from service.ledger.ids import uuid7
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import Parameters, make_plan
from tests.catalog.inputs.test_sequences import LENGTH, WORDS, tokenizer_json

WIDTH = 8
TEXT = "Ignore walking Café!"
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Encoder(nn.Module):
    """BERT in small: words, places and types, a layer of attention under the mask, the mean over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.types = (nn.Embedding(size, WIDTH) for size in (len(WORDS), LENGTH, 2))
        self.heads, self.norm, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.behind(self.words(input_ids), attention_mask, token_type_ids)
        return logits, torch.softmax(logits, dim=1)

    def behind(self, words: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The logits, from the words' embeddings [N, length, width]."""
        count, length, _ = words.shape
        hidden = words + self.places(torch.arange(length).unsqueeze(0)) + self.types(token_type_ids)
        query, key, value = self.heads(hidden).view(count, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(torch.float32).min
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = self.norm(hidden + attended.transpose(1, 2).reshape(count, length, -1))
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.last(torch.tanh((hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)))
        return logits


def exported(network: nn.Module, *, dynamo: bool, length: int = LENGTH) -> bytes:
    """The graph; as dynamo writes it, of texts of that length only."""
    given = tuple(torch.ones(2, length, dtype=torch.int64) for _ in NAMES)  # one thrice would become one input
    options: dict[str, Any] = {"input_names": NAMES, "output_names": ["logit", "probability"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("rows")},) * 3
            program = torch.onnx.export(
                network, given, dynamo=True, dynamic_shapes=shapes, opset_version=20, verbose=False, **options
            )
            assert program is not None
            content: bytes = program.model_proto.SerializeToString()
            return content
        written: Any = io.BytesIO()
        axes = {name: {0: "rows", 1: "length"} for name in NAMES}  # the length is open, as it is in most of them
        torch.onnx.export(network, given, written, dynamo=False, dynamic_axes=axes, opset_version=17, **options)
    result: bytes = written.getvalue()
    return result


def write(folder: Path, content: bytes, **changes: Any) -> Path:
    folder = folder / "guard" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    manifest = {
        "name": "guard",
        "version": "1",
        "title": "Guard",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {
            "kind": "tokens",
            "tensor": "input_ids",
            "length": LENGTH,
            "vocabulary": len(WORDS),
            "padding": 0,
            "mask": 4,
            "special": [2, 3],
            "side": {"attention_mask": "mask", "token_type_ids": "zeros"},
            "tokenizer": {"file": "tokenizer.json", "sha256": hashlib.sha256(tokenizer_json()).hexdigest()},
            **changes,
        },
        "outputs": {
            "labels": ["no", "yes"],
            "link": "softmax",
            "tensors": {"logit": "logit", "probability": "probability"},
        },
        "defaults": {"baseline": "mask"},
        "example": {"text": TEXT},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="module")
def network() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def content(network: Encoder) -> bytes:
    """The network as the older exporter writes it."""
    return exported(network, dynamo=False)


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def trial(network: Encoder, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trial:
    torch.set_num_threads(1)
    content = exported(network, dynamo=request.param == "dynamo")
    return load_trial(write(tmp_path_factory.mktemp("models"), content), torch.device("cpu"))


def told(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    return np.array(explanation.attributions)


def plan_for(trial: Trial, **parameters: Any) -> Plan:
    row = read_instance(trial.manifest, {"text": TEXT}, trial.version.folder)
    return make_plan(trial.version, row, Parameters(target="yes", **parameters))


def integrated(network: Encoder, steps: int = 4000) -> Floats:
    """Integrated gradients of the probability of `yes` at the words' embeddings, from the masked text, by midpoints."""
    ids = torch.tensor([[2, 5, 8, 7, 9, 10, 3, 0]])
    masked = torch.tensor([[2, 4, 4, 4, 4, 4, 3, 0]])
    start, end = network.words(masked).detach(), network.words(ids).detach()
    alphas = (torch.arange(steps) + 0.5).reshape(-1, 1, 1) / steps
    points = (start + alphas * (end - start)).requires_grad_()
    mask = (ids != 0).long().expand(steps, -1)
    probability = torch.softmax(network.behind(points, mask, torch.zeros_like(mask)), dim=1)[:, 1]
    (gradient,) = torch.autograd.grad(probability.sum(), points)
    attributions: Floats = (gradient.double().mean(0) * (end - start)[0]).sum(-1).detach().numpy()
    return attributions


def test_tokens_are_explained_under_the_mask(network: Encoder, trial: Trial) -> None:
    plan = plan_for(trial)
    assert plan.baseline.row == (2, 4, 4, 4, 4, 4, 3, 0)
    explanation = trial.explained(plan)
    ids = torch.tensor([plan.input]).long()
    expected = network(ids, (ids != 0).long(), torch.zeros_like(ids))[1].detach().numpy()[0]
    np.testing.assert_allclose(np.array(explanation.outputs), expected, atol=1e-5)
    assert explanation.converged
    np.testing.assert_allclose(told(explanation), integrated(network), atol=1e-3 * np.abs(told(explanation)).sum())
    assert told(explanation)[[0, 6, 7]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", ["sequential_ig", "saliency", "input_x_gradient", "guided_ig", "neflag"])
def test_the_mask_is_no_input_that_a_method_moves_or_explains(trial: Trial, method: str) -> None:
    parameters: dict[str, Any] = {"method": method}
    if method == "saliency":
        parameters["noise"] = {"kind": "smoothgrad", "samples": 4}
    explanation = trial.explained(plan_for(trial, **parameters))
    values = told(explanation)
    assert values.shape == (LENGTH,)
    assert np.abs(values[1:6]).sum() > 0
    assert values[7] == 0


def test_texts_are_kept_as_a_baseline_set_by_their_tokens(trial: Trial, tmp_path: Path) -> None:
    """By request and from a file, where the network is told no padding; where it is, there is no such set."""
    unmasked = trial.manifest.inputs.model_copy(update={"side": {}})
    manifest = trial.manifest.model_copy(update={"inputs": unmasked})
    version = replace(trial.version, manifest=manifest)
    tokens = [[2, 5, 8, 7, 9, 10, 3, 0], [2, 6, 3, 0, 0, 0, 0, 0]]
    rows = baseline_rows(version, [{"text": TEXT}, {"text": "all"}])
    assert np.array(rows).tolist() == tokens
    with pytest.raises(InvalidRequest, match="row 1: the text has 22 tokens"):
        baseline_rows(version, [{"text": "all"}, {"text": "all " * 20}])
    np.save(tmp_path / "rows.npy", np.array(tokens))
    assert rows_for(manifest, tmp_path / "rows.npy").tolist() == tokens
    np.save(tmp_path / "rows.npy", np.array(tokens) + 0.5)
    with pytest.raises(CatalogError, match="row 1: token 0 must be a whole number"):
        rows_for(manifest, tmp_path / "rows.npy")

    kept = np.array(rows, dtype=np.float32)
    assert KeptSets(tmp_path).keep(version.key, manifest, "calm", kept, "").size == 2
    with pytest.raises(InvalidRequest, match="told the padding has no baseline sets"):
        KeptSets(tmp_path).keep(version.key, trial.manifest, "calm", kept, "")


def test_another_text_is_a_baseline_if_it_has_as_many_tokens(trial: Trial) -> None:
    assert plan_for(trial, baseline={"text": "all all all all!"}).baseline.row == (2, 6, 6, 6, 6, 10, 3, 0)
    with pytest.raises(InvalidRequest, match="baseline: it has 3 tokens and the instance 7"):
        plan_for(trial, baseline={"text": "all"})
    with pytest.raises(InvalidRequest, match=r"baselines are mask$"):
        plan_for(trial, baseline="zeros")


def recorded(trial: Trial) -> tuple[Entry, dict[str, Any]]:
    row = trial.manifest.inputs.read({"text": TEXT}, trial.version.folder)
    spans = row.places
    plan = make_plan(trial.version, row.values, Parameters())
    explanation = trial.explained(plan)
    prediction = trial.version.manifest.outputs.prediction_item(
        explanation.outputs, plan.output_space, truncated=(spans is not None and spans.truncated) or None
    )
    answer = answered(trial.version, plan, explanation, spans, id=uuid7(), cached=False)
    context = Caller("tenant", "key"), Context()
    entry = ledger_entry(trial.version, plan, "digest", explanation, prediction, answer, *context, spans)
    return entry, orjson.loads(encode(answer))


def test_the_reply_has_tokens_with_their_places(trial: Trial) -> None:
    _, body = recorded(trial)
    assert [TEXT[one["start"] : one["end"]] for one in body["attributions"]] == [
        "",
        "Ignore",
        "walk",
        "ing",
        "Café",
        "!",
        "",
    ]
    assert [one["token"] for one in body["attributions"]][:3] == ["[CLS]", "ignore", "walk"]


def test_the_text_is_in_the_personal_part_of_the_record_alone(trial: Trial) -> None:
    entry, _ = recorded(trial)
    for word in ("ignore", "walk", "cafe"):
        assert word not in str(entry.record).lower()
        assert word in str(entry.personal).lower()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a side input nobody fills": ({"side": {"attention_mask": "mask"}}, "the graph's input 'token_type_ids'"),
    "a side input that is not there": (
        {"side": {"attention_mask": "mask", "token_type_ids": "zeros", "places": "positions"}},
        "no input 'places'",
    ),
    "a larger vocabulary": ({"vocabulary": len(WORDS) + 1}, "the embedding has 11 tokens"),
}


@pytest.mark.parametrize(("change", "detail"), WRONG.values(), ids=WRONG.keys())
def test_a_manifest_that_does_not_fit_the_graph_is_refused(
    content: bytes, tmp_path: Path, change: dict[str, Any], detail: str
) -> None:
    with pytest.raises(CatalogError, match=detail):
        load_trial(write(tmp_path, content, **change), torch.device("cpu"))


def test_a_look_up_that_is_more_than_one_is_found_out(content: bytes, tmp_path: Path) -> None:
    """Here the words' numbers are moved by one before they are looked up, so the table's rows are not theirs."""
    model = onnx.load_model_from_string(content)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one"))
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["input_ids", "one"], ["moved"]))
    (gather,) = [node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"]
    gather.input[1] = "moved"
    with pytest.raises(CatalogError, match=r"no embedding|is not the embedding"):
        load_trial(write(tmp_path, model.SerializeToString()), torch.device("cpu"))


class StrictEncoder(Encoder):
    """The same network where nothing is left of the padding: its scores are minus infinity, and nothing keeps the
    number of tokens, by which the sum is divided, from being zero. All padding has no answer."""

    def __init__(self, *, takes_logarithm: bool) -> None:
        super().__init__()
        self.takes_logarithm = takes_logarithm

    def behind(self, words: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        count, length, _ = words.shape
        hidden = words + self.places(torch.arange(length).unsqueeze(0)) + self.types(token_type_ids)
        query, key, value = self.heads(hidden).view(count, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores, mask = query @ key.transpose(-1, -2) / (WIDTH // 2) ** 0.5, attention_mask[:, None, None, :]
        if self.takes_logarithm:
            scores = scores + torch.log(mask.to(hidden.dtype))
        else:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        attended = torch.softmax(scores, -1) @ value
        hidden = self.norm(hidden + attended.transpose(1, 2).reshape(count, length, -1))
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.last(torch.tanh((hidden * weight).sum(1) / weight.sum(1)))
        return logits


@pytest.mark.parametrize(
    ("dynamo", "takes_logarithm"),
    [(False, False), (False, True), (True, True), pytest.param(True, False, marks=pytest.mark.slow)],
)
def test_a_model_that_has_no_answer_to_nothing_but_padding(
    network: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, takes_logarithm: bool, dynamo: bool
) -> None:
    """It computes what the other does wherever there is a token, and is explained as that is, in chunks that are not
    full: nothing that fills them up may be all padding."""
    strict = StrictEncoder(takes_logarithm=takes_logarithm).eval()
    strict.load_state_dict(network.state_dict())
    nothing = torch.zeros(1, LENGTH, dtype=torch.int64)
    assert strict(nothing, nothing, nothing)[0].isnan().all()
    trial = load_trial(write(tmp_path, exported(strict, dynamo=dynamo)), torch.device("cpu"))

    assert "other points" not in caplog.text
    for method in ("integrated_gradients", "saliency", "integrated_hessians"):
        explanation = trial.explained(plan_for(trial, method=method))
        assert explanation.converged
        assert np.isfinite(told(explanation)).all()
        if method == "integrated_gradients":
            size = np.abs(told(explanation)).sum()
            np.testing.assert_allclose(told(explanation), integrated(network), atol=1e-3 * size)

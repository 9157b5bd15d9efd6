"""Models of the repository on the CPU, and their explanations judged in this process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from service.domain import Floats, OptionValue, OutputSpace, Plan, Priority
from service.engine.messages import Done
from service.engine.protocol import Evaluation
from service.engine.worker.evaluation import evaluate
from service.engine.worker.packing import Live
from service.engine.worker.scheduler import Scheduler
from service.faithfulness.registry import BY_NAME
from service.faithfulness.subject import Measure, Measured
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS

torch.set_num_threads(1)  # as in a worker


def measure(name: str, replaced: str | None = None, **options: OptionValue) -> Measure:
    """A measure whose other options have their defaults."""
    spec = BY_NAME[name]
    defaults: dict[str, OptionValue] = {option.name: option.default for option in spec.options}
    return Measure(name, replaced, tuple(sorted({**defaults, **options}.items())))


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges explanations of a model that is loaded."""

    trial: Trial

    def plan(self, row: Floats, method: str | None = None, space: OutputSpace | None = None, seed: int = 0) -> Plan:
        """The plan for a row, by the manifest's defaults."""
        parameters = Parameters(method=method, output_space=space, seed=seed)
        return replace(make_plan(self.trial.version, tuple(row.tolist()), parameters), seed=seed)

    def evaluation(self, plan: Plan, measures: Sequence[Measure], values: Floats | None = None) -> Evaluation:
        """What is measured of the plan's explanation, or of `values` [components], through the scheduler."""
        return self.together([(plan, measures, values)])[0]

    def together(self, asked: Sequence[tuple[Plan, Sequence[Measure], Floats | None]]) -> list[Evaluation]:
        """Several evaluations under way at once."""
        scheduler = Scheduler()
        for task, (plan, measures, values) in enumerate(asked):
            model = self.trial.model.for_plan(plan)
            steps = evaluate(plan, measures, None if values is None else tuple(values.ravel().tolist()), model)
            scheduler.add(Live(task, steps, model.kernels, "model", Priority.BULK, None, time.monotonic()))
        ended: dict[int, Evaluation] = {}
        while scheduler:
            scheduler.step()
            for outcome in scheduler.outcomes():
                assert isinstance(outcome, Done), outcome
                assert isinstance(outcome.result, Evaluation)
                ended[outcome.task] = outcome.result
        return [ended[task] for task in range(len(asked))]

    def figures(self, row: Floats, values: Floats | None, *measures: Measure, **fields: object) -> list[Measured]:
        """The figures of one row's explanation, or of the attributions `values`."""
        plan = replace(self.plan(row), **fields)  # type: ignore[arg-type]
        return list(self.evaluation(plan, measures, values).measured)


def _judge(model: str) -> Judge:
    return Judge(load_trial(Path(MODELS) / model / "1", torch.device("cpu")))


@pytest.fixture(scope="session")
def digits() -> Judge:
    """Images of one channel, 8 by 8."""
    return _judge("digits")


@pytest.fixture(scope="session")
def loan() -> Judge:
    """A table."""
    return _judge("loan")


@pytest.fixture(scope="session")
def images(digits: Judge) -> Floats:
    """Twelve digits that were held out, [12, 64]."""
    return digits.trial.sample(11, 0)


@pytest.fixture(scope="session")
def applications(loan: Judge) -> Floats:
    """Twelve applications that were held out, [12, features]."""
    return loan.trial.sample(11, 0)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Texts of six tokens: an embedding and its positions, a tanh layer for each, their mean, two labels."""
    draws = np.random.default_rng(5)
    sizes = {"table": (20, 4), "places": (6, 4), "inner": (4, 8), "outer": (8, 2)}
    constants = {name: draws.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedded"], axis=0),
        helper.make_node("Add", ["embedded", "places"], ["placed"]),
        helper.make_node("MatMul", ["placed", "inner"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["bent"]),
        helper.make_node("ReduceMean", ["bent"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "outer"], ["logit"]),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", 6])
    logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["rows", 2])
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "words", [tokens], [logit], stored)
    content = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    folder = tmp_path_factory.mktemp("models") / "words" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    inputs = {"kind": "tokens", "tensor": "tokens", "length": 6, "vocabulary": 20, "padding": 0, "mask": 1}
    manifest = {
        "name": "words",
        "version": "1",
        "title": "Words",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {**inputs, "special": [2, 3]},
        "outputs": {"labels": ["no", "yes"], "link": "softmax", "tensors": {"logit": "logit"}},
        "defaults": {"baseline": "mask"},
        "example": [2, 7, 9, 12, 3],
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return Judge(load_trial(folder, torch.device("cpu")))

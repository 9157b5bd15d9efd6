"""A model and its quantised file are compared: whether the explanations survived, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest
import torch
from scipy.stats import spearmanr

from service.catalog.assessments import Assessments
from service.cli.models_check import compare as compare_command
from service.errors import UsageError
from service.lifecycle.adding.adding import AddOptions, add_model
from service.lifecycle.checking.comparison import compare
from service.lifecycle.checking.tables import comparison_json, comparison_text
from service.lifecycle.checking.trial import Trial, load_trial
from tests.artefacts.quantised_files import exported, network, quantised

ROWS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net-fp32`, and the same as `net-int8` and with its sums of the wrong sign as `net-other`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    made, rows = network("relu")
    np.save(folder / "rows.npy", rows.numpy())
    files = {"net-fp32": exported(made, rows)}
    files["net-int8"] = quantised(files["net-fp32"], rows, "qdq", folder)
    with torch.no_grad():
        torch.nn.init.normal_(made[0].weight)  # type: ignore[index]
    files["net-other"] = exported(made, rows)
    for name, model in files.items():
        onnx.save(model, folder / "model.onnx")
        asked = AddOptions(folder / "model.onnx", folder / "rows.npy", name=name, is_logit=True)
        add_model(asked, folder / "served", lambda _, usual: usual, 2, Assessments(folder / "assessments"))
    return folder / "served"


def trial(models: Path, name: str) -> Trial:
    return load_trial(models / name / "1", torch.device("cpu"))


def test_the_agreement_is_that_of_the_explanations(models: Path) -> None:
    """Against SciPy's rank correlation and plain loops."""
    before, after = trial(models, "net-fp32"), trial(models, "net-int8")
    found = compare(before, after, ROWS, seed=0)
    rows = after.sample(ROWS, 0)
    one, other = (each.answers(rows, "integrated_gradients").attributions for each in (before, after))
    agreement = found.agreement
    correlations = [spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert agreement.correlation == pytest.approx(np.median(correlations))
    shared = [len({*np.argsort(-abs(a))[:5]} & {*np.argsort(-abs(b))[:5]}) / 5 for a, b in zip(one, other, strict=True)]
    assert agreement.overlap == pytest.approx(np.mean(shared))
    apart = [abs(a - b).sum() / abs(a).sum() for a, b in zip(one, other, strict=True)]
    assert agreement.apart == pytest.approx(np.mean(apart))
    flips = []
    for a, b in zip(one, other, strict=True):
        counting = [
            (x, y) for x, y in zip(a, b, strict=True) if abs(x) >= sum(abs(a)) / 100 or abs(y) >= sum(abs(b)) / 100
        ]
        flips.append(np.mean([x * y <= 0 for x, y in counting]))
    assert agreement.sign_flips == pytest.approx(np.mean(flips))

    assert agreement.correlation > 0.9
    assert agreement.apart < 0.1
    assert f"rank correlation {agreement.correlation:.3f} in the median" in comparison_text(found)
    assert orjson.loads(comparison_json(found))["agreement"]["overlap"] == agreement.overlap


def test_a_model_agrees_with_itself_and_not_with_another(models: Path) -> None:
    one, other = trial(models, "net-fp32"), trial(models, "net-other")
    same = compare(one, one, ROWS, seed=0).agreement
    assert same.correlation == pytest.approx(1.0)
    assert (same.overlap, same.sign_flips, same.apart) == (1.0, 0.0, 0.0)
    differs = compare(one, other, ROWS, seed=0).agreement
    assert differs.correlation < 0.7
    assert differs.apart > 0.3


def test_the_exit_code_says_whether_the_limits_hold(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names without a version mean the only one."""
    monkeypatch.setattr("service.cli.models_check.prepare_process", lambda: None)
    limits = {"least_correlation": 0.9, "least_overlap": 0.8, "models": str(models), "rows": ROWS}
    assert compare_command("net-fp32", "net-int8", **limits) == 0  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "net-fp32@1" in said
    assert "row by row: rank correlation" in said
    assert compare_command("net-fp32", "net-other@1", **limits) == 1  # type: ignore[arg-type]
    assert compare_command("net-fp32", "net-other@1", models=str(models), rows=ROWS) == 0
    with pytest.raises(UsageError, match="there is no version net-int4"):
        compare_command("net-fp32", "net-int4", models=str(models), rows=ROWS)

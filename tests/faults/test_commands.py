"""The other commands: demo, models, keys."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import onnxruntime
import pytest
from typer.main import get_command

from service import __version__
from service.__main__ import ASKING, GROUPS
from service.cli import start as starting
from tests.conftest import MODELS, NO_AUTHORITIES, PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.faults.conftest import Start


Until = Callable[[Callable[[], bool]], None]
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def curl_lines(output: str) -> list[str]:
    """The commands that the demo offers, as printed."""
    return [found.replace("\\\n", " ") for found in re.findall(r"^ *(curl (?:.*\\\n)*.*)$", output, re.MULTILINE)]


@pytest.mark.slow  # where there are keys: `test_keys_are_made_listed_and_ended_and_the_demo_makes_one_of_its_own`
def test_the_demo_explains_and_what_it_offers_works_on_a_first_start(start: Start, until: Until) -> None:
    program = start("demo")
    assert program.address
    until(lambda: "Stop with Ctrl-C" in program.output)
    check_demo(program.output)
    assert program.end(signal.SIGINT) == 0
    assert "Traceback" not in program.errors


def check_demo(output: str) -> None:
    """What the demo prints is an explanation and where it is recorded, and the commands that it offers work."""
    assert re.search(r"Prediction +denied, probability of denied 0\.\d+", output)
    assert re.search(r"Completeness error +\d\.\de-\d\d", output)
    assert re.search(r"Points spent +\d+ gradients", output)
    assert re.search(r"[█#]{3,}", output)
    record = re.search(r"On record as +([0-9a-f-]{36})", output)
    assert record is not None
    asking, looking = curl_lines(output)
    answered = run_curl(asking)
    assert answered["predictions"][0]["label"] == "denied"
    assert answered["explanations"][0]["converged"] is True
    found = run_curl(looking)
    assert (found["id"], found["subject"]) == (record[1], "demo-applicant")


def run_curl(line: str) -> Any:
    """What the printed command answers: run in a shell where there is curl, else read and done here."""
    if shutil.which("curl") is not None:
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        return json.loads(done.stdout)
    url = next(word for word in line.split() if ":" in word)
    url = url if url.startswith("http") else f"http://{url}"
    headers = dict(header.split(": ", 1) for header in re.findall(r"-H '([^']*)'", line))
    content = re.search(r"-d '([^']*)'", line)
    method = "GET" if content is None and "-X POST" not in line else "POST"
    with httpx.Client(headers=headers, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES) as client:
        return client.request(method, url, content=None if content is None else content[1]).json()


def test_models_says_which_are_whole(run_here: RunCommand, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(MODELS / "loan", models / "loan")
    whole = run_here("models", "--models", str(models))
    assert whole.returncode == 0
    headings, first, *_ = whole.stdout.splitlines()
    assert headings.split() == ["MODEL", "CHECK", "TITLE,", "OR", "WHAT", "IS", "WRONG", "DIGEST"]
    assert first.startswith("loan@1 ")

    with (models / "loan" / "1" / "model.onnx").open("ab") as artefact:
        artefact.write(b"!")
    spoilt = run_here("models", "--models", str(models))
    assert spoilt.returncode == 1
    assert "loan@1  FAULT" in spoilt.stdout
    assert "sha256" in spoilt.stdout


def test_where_there_is_no_model_it_says_where_it_looked(run_here: RunCommand, tmp_path: Path) -> None:
    for asked in (("models",), ("models", "list"), ("models", "list", "--models", str(tmp_path / "elsewhere"))):
        done = run_here(*asked)
        folder = tmp_path / ("elsewhere" if "--models" in asked else "models")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"there is no model in {folder}; name the folder of models with --models")

    headings, first, *_ = run_here("models", "list", "--models", str(MODELS)).stdout.splitlines()
    assert headings.startswith("MODEL ")
    assert first.startswith("digits@1 ")


def test_what_a_worker_needs_and_is_missing_is_named(run_here: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "find_spec", lambda _: None)
    done = run_here("serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ONNX Runtime is missing: install onnxruntime")


def test_the_version_is_told(run_here: RunCommand) -> None:
    done = run_here("--version")
    assert (done.returncode, done.stdout) == (0, f"answerable {__version__}\n")


def test_a_command_whose_setting_is_wrong_ends_with_a_sentence(run_here: RunCommand) -> None:
    done = run_here("keys", "list", "--database-url", "postgresql://us:hidden@127.0.0.1:1/ledger")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the database 127.0.0.1:1 does not answer (")
    assert "hidden" not in done.stderr


def test_a_check_is_a_gate(run_here: RunCommand, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(MODELS / "loan", models / "loan")
    asked = ("models", "check", "loan@2", "--models", str(models), "--rows", "20", "--data", str(tmp_path / "data"))
    passed = run_here(*asked)
    assert (passed.returncode, passed.stderr) == (0, "")
    assert re.search(r"^completeness +1\.000 +at least 1 +passed +21 of 21 rows", passed.stdout, re.MULTILINE)
    assert passed.stdout.endswith("\nloan@2 against loan@1: passed\n")
    (kept,) = (tmp_path / "data" / "assessments").iterdir()
    assert json.loads(kept.read_bytes())["failed"] == []

    failed = run_here(*asked, "--least-correlation", "0.99", "--format", "json", "--beside")
    assert failed.returncode == 1
    assert json.loads((models / "loan" / "2" / "check.json").read_bytes())["failed"] == ["rank correlation"]
    report = json.loads(failed.stdout)
    assert (report["passed"], report["failed"]) == (False, ["rank correlation"])
    assert {"check": "flips", "passed": True, "limit": 0.05, "limit_is": "most"}.items() <= report["checks"][-1].items()
    assert len(report["comparison"]["features"]) == 38

    with (models / "loan" / "2" / "model.onnx").open("ab") as artefact:
        artefact.write(b"!")
    spoilt = run_here(*asked)
    assert spoilt.returncode == 1
    assert re.search(r"^digest .* FAILED +model\.onnx has the sha256", spoilt.stdout, re.MULTILINE)


def test_a_comparison_is_printed_and_exported(run_here: RunCommand, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    asked = ("models", "--models", str(MODELS), "compare", "loan@1", "loan@2", "--rows", "20", "--out", str(table))
    done = run_here(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^black +0\.\d{4} +\d+ +- +- +-0\.\d{4}$", done.stdout, re.MULTILINE)
    with table.open(newline="") as file:
        by_feature = {row["feature"]: row for row in csv.DictReader(file)}
    assert len(by_feature) == 38
    assert by_feature["black"]["after"] == by_feature["black"]["rank_after"] == ""
    row = by_feature["loan_to_price"]
    assert float(row["after"]) - float(row["before"]) == pytest.approx(float(row["difference"]))


def test_a_model_that_nobody_here_made_is_added_served_and_explained(
    run_command: RunCommand, run_here: RunCommand, start: Start, tmp_path: Path
) -> None:
    file = Path(onnxruntime.__file__).parent / "datasets" / "logreg_iris.onnx"
    models, data = ("--models", str(tmp_path / "models")), ("--data", str(tmp_path / "data"))
    (tmp_path / "rows.csv").write_text("sepal width,petal width\n3.5,0.2\n3.2,1.4\n3.3,2.5\n2.8,1.8\n")
    asked = ("models", "add", str(file), "--data", "rows.csv", "--labels", "setosa,versicolor,virginica", *models)
    added = run_command(*asked)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.startswith("logreg_iris@1 is in ")
    refused = run_here(*asked, "--version", "1")
    assert refused.returncode == 1
    assert refused.stderr == "there is a logreg_iris@1 already; leave --version out, or name another\n"

    build = ("models", "baselines", "build", "logreg_iris@1", "--from", "rows.csv", "--set", "mine", *models, *data)
    built = run_here(*build, "--how", "medoids", "--size", "2", "--label", "setosa")
    assert (built.returncode, built.stderr) == (0, "")
    assert "2 k-means medoids of 4 in rows.csv of those predicted setosa" in built.stdout
    unknown = run_here(*build, "--label", "rose")
    assert (unknown.returncode, unknown.stdout) == (1, "")

    program = start("serve", *models, key="a secret of the operator")
    loading, explaining = curl_lines(added.stdout)
    here = {"localhost:8080": program.address.removeprefix("http://"), "<key>": "a secret of the operator"}
    for old, new in here.items():
        loading, explaining = loading.replace(old, new), explaining.replace(old, new)
    assert run_curl(loading)[0]["state"] == "READY"
    explanation = run_curl(explaining)["explanations"][0]
    assert set(explanation["attributions"]) == {"sepal_width", "petal_width"}
    assert explanation["converged"]
    body = {"instances": [[3.0, 1.0]], "parameters": {"baseline": "mine@1"}}
    with httpx.Client(
        headers={"Authorization": "Bearer a secret of the operator"},
        timeout=PATIENCE_SECONDS,
        trust_env=False,
        verify=NO_AUTHORITIES,
    ) as client:
        reply = client.post(f"{program.address}/v1/models/logreg_iris:explain", json=body).json()
    assert reply["explanations"][0]["baseline"]["digest"] in built.stdout
    assert program.end(signal.SIGTERM) == 0


def test_keys_are_made_listed_and_ended_and_the_demo_makes_one_of_its_own(
    run_here: RunCommand, start: Start, until: Until, tmp_path: Path, body: Any
) -> None:
    data = ("--data", str(tmp_path / "data"))
    made = [
        run_here("keys", "create", name, "--tenant", "bank", "--scopes", "explain", *data).stdout
        for name in ("a customer", "a former customer")
    ]
    (identifier, secret), (former, former_secret) = (
        re.findall(r"^(?:id|key) +(\S+)$", text, re.MULTILINE) for text in made
    )
    assert run_here("keys", "revoke", former, *data).returncode == 0
    listed = run_here("keys", "list", *data).stdout
    headings, *rows = listed.splitlines()
    assert headings.split() == ["ID", "TENANT", "NAME", "SCOPES", "STATE", "QUOTA", "POLICY"]
    assert [re.split("  +", row) for row in rows] == [
        [identifier, "bank", "a customer", "explain", "valid", "-", "-"],
        [former, "bank", "a former customer", "explain", "revoked", "-", "-"],
    ]
    assert secret not in listed

    program = start("demo")
    with httpx.Client(
        base_url=program.address, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES
    ) as client:

        def status(method: str, path: str, key: str) -> int:
            content = body if method == "POST" else None
            return client.request(method, path, headers={"Authorization": f"Bearer {key}"}, json=content).status_code

        assert status("POST", "/v1/models/loan/versions/1:explain", secret) == 200
        assert status("GET", "/v1/explanations", secret) == 403
        assert status("POST", "/v1/models/loan/versions/1:explain", former_secret) == 401
    until(lambda: "Stop with Ctrl-C" in program.output)
    assert program.printed_key is None  # on a first start only, which this is not; so the demo needs a key, too
    check_demo(program.output)
    assert program.end(signal.SIGINT) == 0
    assert "Traceback" not in program.errors


def test_keys_are_limited_and_replaced(run_here: RunCommand, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    limits = ("--requests", "100", "--per", "hour", "--methods", "saliency", "--top", "3")
    made = run_here("keys", "create", "a customer", *limits, *data).stdout
    (first,) = re.findall(r"^id +(\S+)$", made, re.MULTILINE)
    rotated = run_here("keys", "rotate", first, "--overlap-days", "0", *data).stdout
    (second,) = re.findall(r"^id +(\S+)$", rotated, re.MULTILINE)
    assert run_here("keys", "rotate", first, *data).returncode == 1  # it has ended

    listed = run_here("keys", "list", *data).stdout
    shown = r" +100 requests a hour  methods=saliency top=3$"
    assert re.search(rf"^{first}  .*expired [-0-9 :]+ [A-Z+0-9-]+{shown}", listed, re.MULTILINE)
    assert re.search(rf"^{second}  default  a customer  explain,ledger:read  valid{shown}", listed, re.MULTILINE)

    assert run_here("keys", "change", second, "--points", "5000", *data).returncode == 0
    assert re.search(rf"^{second} .*valid +5000 points a day +-$", run_here("keys", "list", *data).stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["keys", "rotate", "no-such-id"], 1),
        (["keys", "change", "no-such-id", "--top", "0"], 2),
        (["keys", "create", "x", "--methods", "reading_tea_leaves"], 2),
        (["keys", "revoke", "no-such-id"], 1),
        (["keys", "create", "x", "--scopes", "everything"], 2),
        (["nothing"], 2),
        (["models", "check", "loan@99", "--models", str(MODELS)], 2),
        (["models", "check", "loan@2", "--against", "loan", "--models", str(MODELS)], 2),
        (["models", "check", "loan@2", "--rows", "0"], 2),
        (["models", "compare", "loan@1", "loan@2", "--out", "table.xlsx"], 2),
    ],
)
def test_what_cannot_be_done_ends_with_a_sentence(
    run_here: RunCommand, tmp_path: Path, arguments: list[str], code: int
) -> None:
    data = ["--data", str(tmp_path / "data")] if arguments[0] == "keys" else []
    done = run_here(*arguments, *data)
    assert done.returncode == code
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_misspelt_is_named_with_the_help_that_lists_the_rest(run_here: RunCommand) -> None:
    for arguments, sentence in (
        ((), "Missing command (see `answerable --help`)"),
        (("models", "chekc"), "No such command 'chekc'. Did you mean 'check'? (see `answerable models --help`)"),
        (("keys", "rotate"), "Missing argument 'id' (see `answerable keys rotate --help`)"),
    ):
        done = run_here(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{sentence}\n")


def test_ctrl_c_before_anything_is_served_ends_without_a_trace(
    run_here: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "find_spec", interrupted)
    done = run_here("serve")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_every_argument_and_option_says_what_it_does() -> None:
    def undescribed(command: Any, path: str) -> list[str]:
        missing = [f"{path} {parameter.name}" for parameter in command.params if not parameter.help]
        actions = getattr(command, "commands", {})
        return missing + [fault for name, action in actions.items() for fault in undescribed(action, f"{path} {name}")]

    for group in ("start", *ASKING, *GROUPS):
        assert undescribed(get_command(import_module(f"service.cli.{group}").commands), group) == []

"""`answerable explain`, `show` and `bench`, against the real service."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from service.cli.bench import Measured, figures_of, measure, to_text
from service.cli.connecting import Access, access_to
from service.cli.demo import explain_one_denial
from service.cli.explanation_text import proof_lines
from service.cli.instances import Columns, Form, read_file
from service.client import AsyncClient, Client, Explanation, Feature, ModelDescription, Outputs, Timings, Verification
from service.errors import UsageError
from service.ledger.tables import explanations
from tests.conftest import PATIENCE_SECONDS, MakeKey, Service

if TYPE_CHECKING:
    from tests.cli.conftest import RunCommand

CsvOf = Callable[..., str]


def test_a_table_is_explained_row_by_row(run: RunCommand, csv_of: CsvOf, instance: dict[str, Any]) -> None:
    rows = [{"applicant": f"a-{n}", "note": "x", **instance, "loan_amount": 90 + n} for n in range(3)]
    options = ("--subject-column", "applicant", "--drop", "note", "--target", "denied")
    done = run("explain", "loan@1", csv_of(rows), *options)
    assert (done.code, done.errors) == (0, "")
    answered = [json.loads(line) for line in done.output.splitlines()]
    assert [one["target"]["label"] for one in answered] == ["denied"] * 3
    assert [one["prediction"]["label"] for one in answered] == ["denied"] * 3

    shown = json.loads(run("show", answered[2]["id"]).output)
    assert (shown["record"]["subject"], shown["record"]["input"]["loan_amount"]) == ("a-2", 92)
    assert shown["record"]["attributions"] == answered[2]["attributions"]
    assert shown["proof"]["valid"] is True

    table = run("explain", "loan@1", csv_of(rows), *options, "--text").output.splitlines()
    assert table[0].split()[:3] == ["ROW", "PREDICTION", "EXPLAINED"]
    assert [line.split()[:2] for line in table[1:]] == [["1", "denied"], ["2", "denied"], ["3", "denied"]]


def test_cells_are_what_the_service_takes_them_for(run: RunCommand, csv_of: CsvOf, instance: dict[str, Any]) -> None:
    """The same instance as a CSV and as JSON is the same explanation, categories, missing values and all."""
    Path("one.json").write_text(json.dumps(instance))
    lines = run("explain", "loan@1", csv_of([instance])), run("explain", "loan@1", "one.json")
    by_csv, by_json = (json.loads(done.output) for done in lines)
    assert by_csv["attributions"] == by_json["attributions"]
    assert by_csv["prediction"] == by_json["prediction"]


def test_one_instance_is_shown_in_full_as_its_record_is(
    run: RunCommand, monkeypatch: pytest.MonkeyPatch, instance: dict[str, Any]
) -> None:
    stream = SimpleNamespace(buffer=io.BytesIO(json.dumps(instance).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    done = run("explain", "loan@1", "-", "--read-as", "jsonl", "--target", "denied", "--text")
    assert done.code == 0, done.errors
    words = (
        "Prediction     denied, probability of denied 0.",
        "Principal reasons",
        "Largest attributions",
        "others, in",
    )
    assert [word for word in words if word not in done.output] == []
    id_ = done.output.split("On record as")[1].split()[0]

    shown = run("show", id_, "--text")
    assert shown.code == 0
    explained = [line for line in done.output.splitlines() if line.startswith("  ")]
    timed = "Points spent"  # how long it took is not in the record
    assert [line for line in explained if timed not in line and line not in shown.output.splitlines()] == []
    assert "VALID: as it was recorded; held against the log of " in shown.output


def test_a_record_that_was_changed_is_not_valid(
    run: RunCommand, service: Service, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch, instance: dict[str, Any]
) -> None:
    key = make_key(tenant="cli-tampered")
    monkeypatch.setenv("ANSWERABLE_KEY", key.secret)
    with Client(service.url, key.secret) as client:
        id_ = client.model("loan", "1").explain(instance).id
    with service.database.begin() as connection:
        connection.execute(update(explanations).where(explanations.c.id == id_).values(label="approved"))
    done = run("show", id_, "--text")
    assert done.code == 1
    assert "NOT VALID" in done.output
    assert "FAULT  " in done.output


def test_what_is_refused_names_the_row_and_what_to_do(run: RunCommand, csv_of: CsvOf, instance: dict[str, Any]) -> None:
    rows = [{**instance, "loan_amount": amount} for amount in (90, "ninety", 91)]
    done = run("explain", "loan@1", csv_of(rows))
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith("row 2: ")
    assert "loan_amount" in done.errors

    elsewhere = run("explain", "lone", csv_of(rows))
    assert elsewhere.code == 2
    assert elsewhere.errors.startswith("there is no such model: lone; the models are digits")
    unknown = run("explain", "loan@1", csv_of([{**instance, "loan_amont": 1}]))
    assert "did you mean loan_amount?" in unknown.errors


@pytest.mark.parametrize("command", [("explain", "loan", "rows.csv"), ("show", "x"), ("bench", "loan")])
def test_no_service_no_key_and_no_address_are_sentences(
    run: RunCommand, monkeypatch: pytest.MonkeyPatch, csv_of: CsvOf, command: tuple[str, ...]
) -> None:
    csv_of([{"a": 1}])
    monkeypatch.setattr("service.client.retries.random.random", lambda: 0.0)
    gone = run(*command, server="http://127.0.0.1:9")
    assert (gone.code, gone.errors) == (
        1,
        "nothing answers at http://127.0.0.1:9; is the service running, and is that its address?\n",
    )
    assert run(*command, server="here:80").errors.startswith("--server 'here:80' is no address; it begins with http://")
    monkeypatch.setenv("ANSWERABLE_KEY", "ak_wrong_wrong_wrong_wrong")
    wrong = run(*command)
    assert wrong.code == 1
    assert wrong.errors.endswith("; ANSWERABLE_KEY is to hold a key of this service\n")
    monkeypatch.delenv("ANSWERABLE_KEY")
    without = run(*command)
    assert without.code == 2
    assert without.errors.startswith("ANSWERABLE_KEY is not set")


def test_without_a_server_it_asks_where_the_settings_say(
    run: RunCommand, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = httpx.URL(service.url)
    monkeypatch.setenv("ANSWERABLE_HOST", "0.0.0.0")
    monkeypatch.setenv("ANSWERABLE_PORT", str(address.port))
    done = run("show", "none", server=None)
    assert (done.code, done.errors) == (1, "there is no such explanation\n")


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "https://127.0.0.1:8443"), ("::", "https://[::1]:8443")])
def test_a_service_with_a_certificate_is_asked_by_https(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"KEY": "k" * 20, "HOST": host, "PORT": "8443", "TLS_CERTIFICATE": "c.pem", "TLS_KEY": "k.pem"}
    for name, value in settings.items():
        monkeypatch.setenv(f"ANSWERABLE_{name}", value)
    assert access_to(None).url == url
    assert access_to("HTTPS://there").url == "HTTPS://there"


async def test_a_measurement_does_not_wait_for_the_day_on_which_a_quota_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = {
        "explanations": [{"id": "a", "method": "saliency"}],
        "predictions": [{"outputs": [], "output_space": "logit"}],
    }
    answers = [httpx.Response(200, json=answered)]

    def answer(_: httpx.Request) -> httpx.Response:
        spent = httpx.Response(429, json={"detail": "the quota is spent"}, headers={"Retry-After": "86400"})
        return answers.pop() if answers else spent

    made = partial(AsyncClient, transport=httpx.MockTransport(answer))
    monkeypatch.setattr("service.cli.bench.AsyncClient", made)
    model = ModelDescription(
        name="loan",
        version="1",
        ready=True,
        title="",
        description="",
        inputs=(),
        outputs=Outputs(kind="classes", spaces=(), default_space=""),
        methods=(),
        baselines=(),
        defaults={},
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        measured, _ = await measure(Access("http://there", "k"), model, [{}], {}, 2, 0.05, fresh=True)
    assert (measured.refused, measured.explanations) == (2, [])


async def test_a_demo_that_cannot_ask_says_why(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.client.retries.random.random", lambda: 0.0)
    await explain_one_denial(service.services, "http://127.0.0.1:9")
    assert "could not be asked: nothing answers at http://127.0.0.1:9" in capsys.readouterr().out


def test_a_measurement_counts_what_it_was_answered(run: RunCommand, service: Service, make_key: MakeKey) -> None:
    done = run("bench", "loan@1", "--connections", "3", "--seconds", "0.2", "--target", "denied")
    assert done.code == 0, done.errors
    figures = json.loads(done.output)
    assert figures["answered"] >= 3
    assert (figures["refused"], figures["lost"], figures["not_converged"]) == (0, 0, 0)
    assert figures["per_second"] == pytest.approx(figures["answered"] / figures["seconds"])
    assert 0 < figures["compute_ms"]["p50"] <= figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert figures["completeness_error"]["max"] < 1e-3
    with httpx.Client(base_url=service.url, headers=service.key.headers) as client:
        page = client.get("/v1/explanations", params={"decision_id": "answerable-bench", "limit": 200}).json()
    assert len(page["explanations"]) == min(figures["answered"] + 1, 200)  # and one before the clock
    assert not any(record["cached"] for record in page["explanations"])

    text = run("bench", "loan@1", "--connections", "1", "--seconds", "0.1", "--cached", "--text").output
    assert text.startswith("loan@1: ")
    assert "Completeness error" in text


def test_a_measurement_of_what_is_refused_for_good_says_why(run: RunCommand) -> None:
    done = run("bench", "loan@1", "--seconds", "0.1", "--method", "integrated_gradient")
    assert done.code == 1
    assert "did you mean integrated_gradients?" in done.errors


def test_figures_are_percentiles_of_what_was_measured() -> None:
    answers = [
        Explanation(
            id=str(number),
            method="saliency",
            converged=number > 1,
            evaluations=number,
            timings_ms=Timings(queue=0.0, compute=2.0 * number, total=3.0 * number),
            completeness_error=None,
            attribution_error=number / 100,
        )
        for number in range(101)
    ]
    measured = Measured(answers, [float(number) for number in range(101)], refused=2, lost=1)
    figures = figures_of(measured, "loan@1", 4, 10.0)
    assert (figures.answered, figures.refused, figures.lost, figures.not_converged) == (101, 2, 1, 2)
    assert figures.per_second == pytest.approx(10.1)
    assert figures.latency_ms is not None
    assert (figures.latency_ms.p50, figures.latency_ms.p90, figures.latency_ms.p99, figures.latency_ms.max) == (
        50.0,
        90.0,
        99.0,
        100.0,
    )
    assert figures.completeness_error is None
    assert "Completeness error" not in to_text(figures)
    assert "refused 2, lost 1" in to_text(figures)


# Files

TABLE = ModelDescription(
    name="m",
    version="1",
    ready=True,
    title="m",
    description="",
    inputs=(Feature(name="size"), Feature(name="colour", categories=("red", 2))),
    outputs=Outputs(kind="classes", spaces=("logit",), default_space="logit"),
    methods=(),
    baselines=(),
    defaults={},
)


@pytest.mark.parametrize(
    ("name", "content", "instances"),
    [
        ("a.csv", b"\xef\xbb\xbfsize,colour\n1,red\n2.5,2\n,blue\nbig,\n", "table"),
        ("a.json", b'{"size": 1}', [{"size": 1}]),
        ("a.json", b'[{"size": 1}, [2, "red"]]', [{"size": 1}, [2, "red"]]),
        ("a.json", b'{"instances": [{"size": 1}], "parameters": {}}', [{"size": 1}]),
        ("a.jsonl", b'{"size": 1}\n\n{"size": 2}\n', [{"size": 1}, {"size": 2}]),
        ("a.txt", "größer\n".encode(), [{"text": "größer\n"}]),
    ],
)
def test_files_are_read_as_their_names_end(tmp_path: Path, name: str, content: bytes, instances: Any) -> None:
    if instances == "table":
        instances = [
            {"size": 1, "colour": "red"},
            {"size": 2.5, "colour": 2},
            {"size": None, "colour": "blue"},
            {"size": "big", "colour": None},
        ]
    (tmp_path / name).write_bytes(content)
    assert read_file(str(tmp_path / name), None, TABLE, Columns()).instances == instances


def test_an_image_file_is_explained(run: RunCommand) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save("digit.png")
    done = run("explain", "digits", "digit.png")
    assert done.code == 0, done.errors
    answered = json.loads(done.output)
    assert answered["attributions"]["shape"] == [8, 8]
    shown = run("explain", "digits", "digit.png", "--text").output
    assert f"of {answered['target']['label']} {answered['output']:.3f}" in shown
    assert re.search(r"row \d, column \d +[+-]", shown)


def test_any_file_is_sent_as_bytes_if_one_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\x00\xff")
    read = read_file(str(tmp_path / "a.csv"), Form.BYTES, TABLE, Columns())
    assert read.instances == [{"bytes": base64.b64encode(b"\x00\xff").decode()}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.xlsx", b"", "how is .*a.xlsx to be read"),
        ("a.csv", b"size\n1,2\n", "row 1 has more or fewer cells"),
        ("a.csv", b"size,colour\n1\n", "row 1 has more or fewer cells"),
        ("a.csv", b"", "holds no instance"),
        ("a.json", b"{", "cannot be read as json"),
        ("a.txt", b"\xff", "cannot be read as text"),
        ("none.csv", None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_read_are_sentences(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_file(str(tmp_path / name), None, TABLE, Columns())


def test_columns_that_are_no_features_are_taken_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("size,colour,who,which\n1,red,anna,7\n2,red,,8\n")
    read = read_file(str(tmp_path / "a.csv"), None, TABLE, Columns("who", "which"))
    assert read.instances == [{"size": 1, "colour": "red"}, {"size": 2, "colour": "red"}]
    assert [(context.subject, context.decision_id) for context in read.contexts] == [("anna", "7"), (None, "8")]
    with pytest.raises(UsageError, match="no column 'whom'; they have size, colour"):
        read_file(str(tmp_path / "a.csv"), None, TABLE, Columns("whom"))


def test_a_proof_names_every_fault() -> None:
    lines = [*proof_lines(Verification(id="a", valid=False, erased=False, faults=("x is not y",), size=3, signed=0))]
    assert lines[0] == "  FAULT  x is not y"
    assert "NOT VALID; held against the log of 3 rows" in lines[1]

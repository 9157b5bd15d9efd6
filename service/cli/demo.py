"""`answerable demo`: one denied application, explained over HTTP and shown in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from service.access.permissions import OPERATOR_TENANT
from service.api.services import Services
from service.catalog.versions import ModelVersion
from service.cli.explanation_text import explanation_lines
from service.client import AsyncClient, ClientError, Context, Explanation
from service.ledger import Keys

DAY = 86_400_000_000
"""In microseconds."""
PROGRAM = "answerable"
CONTEXT = Context(subject="demo-applicant", decision_id="demo")


async def explain_one_denial(services: Services, address: str) -> None:
    """Explains the example of the first ready model and prints what the service says of it."""
    version: ModelVersion | None = next(
        (v for v in services.catalog if v.is_ready and v.manifest.outputs.adverse), None
    )
    if version is None or not isinstance(version.manifest.example, Mapping):
        print(
            f"No model in {services.repository.shown} can be shown: one that is ready, with something adverse and a "
            "table for an example. See the log above; the folder of models is named with --models.",
            flush=True,
        )
        return
    key = services.bootstrap_key or _demo_key(services.keys)
    example = {name: _plain(value) for name, value in version.manifest.example.items()}
    target = version.manifest.outputs.usual_target
    try:
        async with AsyncClient(address, key) as client:
            model = client.model(version.key.name, version.key.version)
            explanation = await model.explain(example, context=CONTEXT, fresh=True, target=target)
    except ClientError as error:
        print(f"{version.key} could not be asked: {error}", flush=True)
        return
    titles = {unit.name: unit.title for unit in version.manifest.inputs.components}
    explained = [
        f"{version.manifest.title} ({version.key}): one application",
        "",
        *explanation_lines(explanation, titles),
    ]
    print("\n".join(["", *explained, *_invitation(version, explanation, address, key, example)]), flush=True)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _demo_key(keys: Keys) -> str:
    """A key for this run: the operator's key was shown once, at the first start, and is not stored."""
    _, secret = keys.create("demo", OPERATOR_TENANT, ["explain", "ledger:read"], keys.now() + DAY)
    return secret


def _program() -> str:
    """What this command was called by; `make run` calls it by its place, for it is not on the path."""
    return sys.argv[0] if Path(sys.argv[0]).name == PROGRAM else PROGRAM


def _invitation(
    version: ModelVersion, explanation: Explanation, address: str, key: str, example: Mapping[str, Any]
) -> list[str]:
    """How to ask for the same."""
    parameters = {"target": version.manifest.outputs.usual_target}
    body = {"instances": [example], "parameters": parameters, "context": CONTEXT.to_json()}
    path = f"/v1/models/{version.key.name}/versions/{version.key.version}:explain"
    return [
        "",
        "Ask for it yourself:",
        "",
        f"  curl -s {address}{path} -H 'Authorization: Bearer {key}' \\",
        f"    -H 'Content-Type: application/json' -d '{orjson.dumps(body).decode()}'",
        "",
        "Look it up:",
        "",
        f"  curl -s {address}/v1/explanations/{explanation.id} -H 'Authorization: Bearer {key}'",
        f"  ANSWERABLE_KEY='{key}' {_program()} show {explanation.id} --server {address}",
        "",
        "`context.subject` names the person: by it explanations are found, held and erased. Put your own in.",
        "",
        f"API documentation: {address}/docs    Stop with Ctrl-C.",
    ]

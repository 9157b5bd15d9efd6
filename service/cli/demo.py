"""`answerable demo`: one denied application, explained over HTTP and shown in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from service.access.permissions import OPERATOR_TENANT
from service.api.services import Services
from service.catalog.versions import ModelVersion
from service.ledger import Keys

DAY = 86_400_000_000
"""In microseconds."""
BAR = 24
NAME = 60


async def explain_one_denial(services: Services, address: str) -> None:
    """Explains the example of the first ready model and prints what the service says of it."""
    version: ModelVersion | None = next(
        (v for v in services.catalog if v.is_ready and v.manifest.outputs.adverse), None
    )
    if version is None or not isinstance(version.manifest.example, Mapping):
        folder = services.repository.folder.absolute()
        print(
            f"No model in {folder} can be shown: one that is ready, with something adverse and a table for an example. "
            "See the log above; the folder of models is named with --models.",
            flush=True,
        )
        return
    key = services.bootstrap_key or _demo_key(services.keys)
    path = f"/v1/models/{version.key.name}/versions/{version.key.version}:explain"
    example = {name: _plain(value) for name, value in version.manifest.example.items()}
    body = {
        "instances": [example],
        "parameters": {"target": version.manifest.outputs.usual_target},
        "context": {"subject": "demo-applicant", "decision_id": "demo"},
    }
    async with httpx.AsyncClient(
        base_url=address, trust_env=False, headers={"Authorization": f"Bearer {key}"}
    ) as client:
        reply = await client.post(path, json=body, headers={"Cache-Control": "no-cache"})
    reply.raise_for_status()
    print(_to_text(version, reply.json(), address, path, key, body), flush=True)


def _plain(value: str | float | None) -> str | float | int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _demo_key(keys: Keys) -> str:
    """A key for this run: the operator's key was shown once, at the first start, and is not stored."""
    _, secret = keys.create("demo", OPERATOR_TENANT, ["explain", "ledger:read"], keys.now() + DAY)
    return secret


def _to_text(
    version: ModelVersion, reply: dict[str, Any], address: str, path: str, key: str, body: dict[str, Any]
) -> str:
    explanation, prediction = reply["explanations"][0], reply["predictions"][0]
    titles = {component.name: component.title for component in version.manifest.inputs.components}
    baseline = explanation["baseline"]
    outputs = version.manifest.outputs
    explained = f"{explanation['output_space']} of {outputs.usual_target} {explanation['output']:.3f}"
    lines = [
        "",
        f"{version.manifest.title} ({version.key}): one application",
        "",
        f"  Prediction     {outputs.prediction_text(prediction)}, {explained}",
        f"  Compared with  the mean of {baseline['size']} {baseline['name']} applications, "
        f"{explanation['baseline_output']:.3f}",
        "",
        f"  {'Principal reasons':<{NAME}}share of the difference",
        *_reasons(explanation),
        "",
        "  Largest attributions, either way",
        *_attributions(explanation["attributions"], titles),
        "",
        f"  Completeness error   {explanation['completeness_error']:.1e} ({explanation['completeness']}; "
        f"converged: {'yes' if explanation['converged'] else 'no'})",
        f"  Points spent         {explanation['evaluations']} gradients, {explanation['timings_ms']['compute']:.1f} ms",
        f"  On record as         {explanation['id']}",
        "",
        "Ask for it yourself:",
        "",
        f"  curl -s {address}{path} -H 'Authorization: Bearer {key}' \\",
        f"    -H 'Content-Type: application/json' -d '{orjson.dumps(body).decode()}'",
        "",
        "Look it up:",
        "",
        f"  curl -s {address}/v1/explanations/{explanation['id']} -H 'Authorization: Bearer {key}'",
        "",
        "`context.subject` names the person: by it explanations are found, held and erased. Put your own in.",
        "",
        f"API documentation: {address}/docs    Stop with Ctrl-C.",
    ]
    return "\n".join(lines)


def _reasons(explanation: dict[str, Any]) -> list[str]:
    reasons = explanation.get("reasons", [])
    change = abs(explanation["output"] - explanation["baseline_output"]) or 1.0
    return [
        f"  {reason.get('code', '')}  {_short(reason['text'], NAME - 5)}{_bar(reason['contribution'] / change)} "
        f"{reason['contribution'] / change:.0%}"
        for reason in reasons
    ]


def _attributions(attributions: dict[str, float], titles: dict[str, str], max_shown: int = 8) -> list[str]:
    ranked = sorted(attributions.items(), key=lambda item: -abs(item[1]))[:max_shown]
    largest = abs(ranked[0][1]) or 1.0
    return [f"  {_short(titles[name], NAME)}{value:+.3f} {_bar(abs(value) / largest)}" for name, value in ranked]


def _short(text: str, width: int) -> str:
    return (text if len(text) < width else text[: width - 2] + "…").ljust(width)


def _bar(share: float) -> str:
    full = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return full * max(1, round(min(share, 1.0) * BAR))

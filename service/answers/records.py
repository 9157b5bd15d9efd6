"""What is said of an explanation: to the caller in the reply, and to posterity in the record."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from service.access.permissions import OPEN, OPERATOR_TENANT, Policy
from service.access.quotas import Account
from service.answers.reasons import principal_reasons, texts_digest
from service.catalog.inputs.kind import Places, Row
from service.catalog.manifest import Manifest
from service.catalog.versions import ModelVersion
from service.domain import Explanation, GroupShare, NoiseKind, OutputSpace, Plan
from service.ledger.entries import Entry, Stored
from service.methods.registry import BY_NAME
from service.monitoring.review import flags_of

IN_CLEAR = frozenset(
    {
        "id",
        "model",
        "method",
        "target",
        "output_space",
        "completeness",
        "converged",
        "reason",
        "evaluations",
        "baseline",
        "flags",
        "cached",
    }
)
"""What of an answer the record holds in clear, and so for ever. All else says more of the person: the model's outputs,
what each of their values did, errors that a guess of the input could be tried against. What stays in clear is not
nothing: the label explained, which is the predicted one where none was asked for (the ledger's column has it too), the
flags, and how hard the row was to explain."""

NO_VERSION = "1"
"""Of a baseline that is no set: it came with the request, or is made of the input."""

MOST_ERROR = 0.1
"""An explanation whose sum misses more than a tenth of the change gives no reasons, and has no protected share."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant and the id of the key, what it may do and is shown, and its account, if it has a quota."""

    tenant: str
    key_id: str
    scopes: frozenset[str] = frozenset()
    policy: Policy = OPEN
    account: Account | None = None

    @property
    def is_operator(self) -> bool:
        """Whether it is one of those who run the service, who may change what all tenants share."""
        return self.tenant == OPERATOR_TENANT


@dataclass(frozen=True, slots=True)
class Context:
    """What the explanation belongs to, in the caller's world."""

    decision_id: str | None = None
    subject: str | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then random; ids sort by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def prediction_of(
    version: ModelVersion, space: OutputSpace, outputs: tuple[float, ...] | None, spans: Places | None = None
) -> dict[str, Any]:
    """The `predictions` item; without what was predicted where the model answered a number that is not finite."""
    cut = {"truncated": True} if spans is not None and spans.truncated else {}
    return {**version.manifest.outputs.prediction_body(outputs, space), **cut}


def explanation_body(
    version: ModelVersion,
    plan: Plan,
    explanation: Explanation,
    spans: Places | None = None,
    *,
    cached: bool,
    has_channels: bool = False,
) -> dict[str, Any]:
    """The `explanations` item without its id and timings. What could not be computed is left out, never null."""
    manifest, row = version.manifest, Row(plan.input, spans)

    def shown(values: tuple[float, ...]) -> Any:
        return manifest.inputs.attributions(values, explanation.shape, row, channels=has_channels).to_json()

    body: dict[str, Any] = {
        "model": {"name": plan.model.name, "version": plan.model.version, "digest": plan.model.digest},
        "method": plan.method,
        "target": manifest.outputs.target_body(explanation.target),
        "output_space": plan.output_space,
    }
    if explanation.output is not None:
        body["output"] = explanation.output
    if explanation.attributions is not None:
        body |= {
            "baseline_output": explanation.baseline_output,
            "attributions": shown(explanation.attributions),
            "completeness": explanation.completeness,
        }
    for name in ("completeness_error", "attribution_error"):
        error = getattr(explanation, name)
        if error is not None:
            body[name] = error
    if explanation.standard_error is not None:
        body["standard_error"] = shown(explanation.standard_error)
    if plan.errors and explanation.attribution_errors is not None:
        body["attribution_errors"] = shown(explanation.attribution_errors)
    if explanation.interactions is not None:
        body["interactions"] = explanation.interactions
    if explanation.groups:
        body["groups"] = [_group(manifest, group) for group in explanation.groups]
    if plan.noise is not None:
        body["noise"] = {**asdict(plan.noise), "output": explanation.noisy_output}
    body["converged"] = explanation.converged
    if explanation.reason is not None:
        body["reason"] = explanation.reason
    baseline, gives_reasons = plan.baseline, _gives_reasons(plan, explanation)
    body |= {
        "evaluations": explanation.evaluations,
        "baseline": {
            "name": baseline.name,
            "version": baseline.version,
            "digest": baseline.digest,
            "size": baseline.size,
        },
        "flags": flags_of(manifest, plan, explanation, adds_up=gives_reasons),
        "cached": cached,
    }
    reasons = principal_reasons(manifest, explanation) if gives_reasons else None
    if reasons is not None:
        body["reasons"] = reasons
    return body


def _group(manifest: Manifest, group: GroupShare) -> dict[str, Any]:
    names = manifest.inputs.unit_names
    members = [names[member] for member in group.members] if names else group.members
    return {"features": members, "dividend": group.dividend, "value": group.value}


def _gives_reasons(plan: Plan, explanation: Explanation) -> bool:
    """Whether the values say what each feature moved the output by, and not too wrongly."""
    is_variance = plan.noise is not None and plan.noise.kind is NoiseKind.VARGRAD
    error = explanation.completeness_error
    return BY_NAME[plan.method].gives_reasons and not is_variance and error is not None and error < MOST_ERROR


def ledger_entry(
    version: ModelVersion,
    plan: Plan,
    plan_digest: str,
    explanation: Explanation,
    prediction: Mapping[str, Any],
    body: Mapping[str, Any],
    caller: Caller,
    context: Context,
    spans: Places | None = None,
    job_row: tuple[str, int] | None = None,
) -> Entry:
    """The record of one explanation, serialised once.

    The personal part is kept apart: the input and what was answered to it, whom it concerns, and every digest that a
    guess of them could be tried against.
    """
    personal = {
        **version.manifest.inputs.to_record(Row(plan.input, spans)),
        "baseline": {"row": plan.baseline.row, "digest": plan.baseline.digest},
        "plan_digest": plan_digest,
        "answer": {name: value for name, value in body.items() if name not in IN_CLEAR} | {"prediction": prediction},
    }
    record = {
        **{name: value for name, value in body.items() if name in IN_CLEAR},
        "baseline": body["baseline"] if plan.baseline.row is None else {"name": plan.baseline.name, "size": 1},
        "parameters": {
            "target": plan.target,
            "tolerance": plan.tolerance,
            "max_evaluations": plan.max_evaluations,
            "seed": plan.seed,
            "floor": plan.floor,
            "options": dict(plan.options),
            "noise": plan.noise,
            "tolerance_of": plan.tolerance_of,
            "errors": plan.errors,
        },
        "policy": caller.policy.written(),
        "rule": explanation.rule,
        "answers_until_deadline": explanation.answers,
        "manifest": version.manifest_digest,
        "reason_texts": texts_digest(version.manifest) if "reasons" in body else None,
        "environment": {**(version.environment or {}), "chunk_rows": explanation.chunk_rows},
    }
    return Entry(
        id=body["id"],
        tenant=caller.tenant,
        created=time.time_ns() // 1000,
        model=plan.model.name,
        version=plan.model.version,
        method=plan.method,
        converged=explanation.converged,
        key_id=caller.key_id,
        record=orjson.dumps(record, option=orjson.OPT_SORT_KEYS),
        personal=orjson.dumps(personal),
        label=prediction.get("label"),
        decision_id=context.decision_id,
        subject=context.subject,
        cohort=context.cohort,
        flags=tuple(body["flags"]),
        retention=version.manifest.retention,
        job_row=job_row,
    )


def answered(stored: Stored) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prediction and the explanation that were answered when this was recorded, before any policy limited them."""
    record, personal = orjson.loads(stored.record), orjson.loads(stored.personal)
    body = {name: value for name, value in record.items() if name in IN_CLEAR} | personal["answer"]
    prediction = body.pop("prediction")
    if personal["baseline"]["row"] is not None:  # its digest would tell the row
        body["baseline"] = {"version": NO_VERSION, "digest": personal["baseline"]["digest"], **body["baseline"]}
    return prediction, body


def whole_record(stored: Stored) -> dict[str, Any]:
    """All that the ledger holds of an explanation: the record, the personal part, and its place in the log.

    Of one whose personal part was erased, what is left.
    """
    record = orjson.loads(stored.record) if stored.record else {"id": stored.id, "method": stored.method}
    known = {
        **record,
        "created": stored.created,
        "tenant": stored.tenant,
        "key_id": stored.key_id,
        "cohort": stored.cohort,
        "retention": stored.retention,
        "ledger": {"sequence": stored.seq, "leaf": stored.leaf.hex(), "tombstone": stored.tombstone},
    }
    if stored.tombstone is not None:
        return known
    personal = orjson.loads(stored.personal)
    return {
        **known,
        **personal.get("answer", {}),  # which stood in the record before records had a schema
        "subject": stored.subject,
        "decision_id": stored.decision_id,
        "input": personal["input"],
        "personal_commitment": hashlib.sha256(stored.opened).hexdigest(),
    }

"""What jobs of evaluations found: of one job, and all that is kept of a model's version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from service.api.auth import needs
from service.api.background import find_job
from service.api.model_schemas import FigureItem
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.background.evaluating import EvaluateSpec, figures_of, finished_rows
from service.faithfulness.summary import Figure
from service.ledger.stored_jobs import EVALUATE, State

router = new_router("Evaluations")


class WholeFigureItem(FigureItem):
    """One metric of one method, with the mean curve and the figure of each explanation."""

    curve: list[float] | None = Field(description="the mean curve, where the metric has one")
    values: list[float | None] = Field(description="by row; null where there is none")


class ResultReply(BaseModel):
    """What a job of evaluations found, so far."""

    id: str = Field(description="of the job")
    model: str = Field(description="the model's name")
    version: str = Field(description="the model's version")
    state: State = Field(description="how the job stands; until it is done the figures are of some rows")
    source: str = Field(description="what was explained: instances, held-out rows or stored explanations")
    rows: int = Field(description="how many are finished")
    figures: list[WholeFigureItem] = Field(description="by method and metric")


class EvaluationItem(BaseModel):
    """An evaluation of the version."""

    id: str = Field(description="of the job, or of the command's run")
    created: int = Field(description="microseconds since the epoch, UTC")
    source: str = Field(description="what was explained: instances, held-out rows or stored explanations")
    rows: int = Field(description="how many inputs")
    figures: list[FigureItem] = Field(description="by method and metric")


class EvaluationsReply(BaseModel):
    """What is kept of a version."""

    model: str = Field(description="the model's name")
    version: str = Field(description="the model's version")
    evaluations: list[EvaluationItem] = Field(description="the newest first")


@router.get("/v1/jobs/{job}/result", responses=answers(404, 503))
@needs("explain")
async def show_result(request: ApiRequest, job: str) -> ResultReply:
    """What a job of evaluations found: by method and metric the mean, its interval, the curve and all values."""
    stored = await find_job(request, job, EVALUATE)
    spec = EvaluateSpec.of(request.services.vault, stored)
    rows = await asyncio.to_thread(finished_rows, request.services.need_ledger().jobs, stored.id)
    figures = await asyncio.to_thread(figures_of, spec, rows)
    return ResultReply(
        id=stored.id,
        model=spec.model,
        version=spec.version,
        state=stored.state,
        source=spec.source,
        rows=len(rows),
        figures=[_whole(figure) for figure in figures],
    )


@router.get("/v1/models/{model:name}/evaluations", responses=answers(404))
@needs("explain")
async def list_evaluations(request: ApiRequest, model: str) -> EvaluationsReply:
    """All evaluations that are kept of the version that the bare name means: the tenant's own, and the operator's."""
    services = request.services
    version = services.catalog.default_version(model) or services.catalog.versions(model)[-1]
    find = services.evaluations.find
    kept = await asyncio.to_thread(find, version.key, version.manifest_digest, request.caller.tenant)
    return EvaluationsReply(
        model=model,
        version=version.key.version,
        evaluations=[
            EvaluationItem(
                id=one.id, created=one.created, source=one.source, rows=one.rows, figures=figure_items(one.figures)
            )
            for one in kept
        ],
    )


def figure_items(figures: Sequence[Figure]) -> list[FigureItem]:
    """The figures without what there is of each explanation."""
    return [FigureItem(**_fields(figure)) for figure in figures]


def _whole(figure: Figure) -> WholeFigureItem:
    curve = None if figure.curve is None else [*figure.curve]
    return WholeFigureItem(**_fields(figure), curve=curve, values=[*figure.values])


def _fields(figure: Figure) -> dict[str, Any]:
    names = ("method", "metric", "better", "replaced", "replaced_by", "options", "mean", "explanations", "skipped")
    interval = None if figure.low is None or figure.high is None else [figure.low, figure.high]
    return {**{name: getattr(figure, name) for name in names}, "interval": interval}

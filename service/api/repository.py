"""Loading and unloading models while serving: the model repository extension of the V2 protocol, as Triton has it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field, StrictBool, StrictStr

from service.api.auth import needs
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import Strict
from service.lifecycle.serving.repository import READY, State

ModelName = Annotated[str, Path(max_length=64)]

router = new_router("Model repository")


class IndexBody(Strict):
    """What to list. May be left out."""

    ready: StrictBool = Field(False, description="only what is ready")


class VersionParameters(Strict):
    """Which version; without one, all of the model."""

    version: StrictStr | None = Field(None, max_length=64, description="one version; default: every one of the model")


class UnloadParameters(VersionParameters):
    """Which version. Models have no dependents here, so `unload_dependents` changes nothing."""

    unload_dependents: StrictBool = Field(False, description="changes nothing")


class LoadBody(Strict):
    """May be left out."""

    parameters: VersionParameters = Field(default_factory=lambda: VersionParameters(), description="what to load")


class UnloadBody(Strict):
    """May be left out."""

    parameters: UnloadParameters = Field(default_factory=lambda: UnloadParameters(), description="what to unload")


class StateItem(BaseModel):
    """How one version of a model stands."""

    name: str = Field(description="of the model")
    version: str = Field(description="of the model")
    state: str = Field(description="READY, LOADING or UNAVAILABLE")
    reason: str = Field(description="why it is unavailable; empty otherwise")


@router.post("/v2/repository/index", responses=answers(503))
@needs("models:write", by_operator=True)
async def show_index(request: ApiRequest, body: IndexBody) -> list[StateItem]:
    """Every version that is served, was unloaded, or lies in the folder of models."""
    states = await request.services.repository.index()
    return _listed([state for state in states if state.state == READY or not body.ready])


@router.post("/v2/repository/models/{model}/load", responses=answers(404, 503))
@needs("models:write", by_operator=True)
async def load_model(request: ApiRequest, model: ModelName, body: LoadBody) -> list[StateItem]:
    """Loads, or loads again, what lies in the model's folder, while everything else is served.

    Answers when it is served. A version that cannot be loaded is refused with the reason, and what was served before
    goes on; so too, with 503, where the models come from a registry that cannot be reached. The bare model name means a
    new version once its check has passed.
    """
    return _listed(await request.services.repository.load(model, body.parameters.version))


@router.post("/v2/repository/models/{model}/unload", responses=answers(404, 503))
@needs("models:write", by_operator=True)
async def unload_model(request: ApiRequest, model: ModelName, body: UnloadBody) -> list[StateItem]:
    """Serves the model, or one version, no more until it is loaded again; requests under way have their answers."""
    return _listed(await request.services.repository.unload(model, body.parameters.version))


def _listed(states: list[State]) -> list[StateItem]:
    return [StateItem(**asdict(state)) for state in states]

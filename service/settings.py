"""Settings: environment variables `ANSWERABLE_*`, a `.env` file, or options of `answerable serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _digests(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    return [digest.removeprefix("sha256:") for digest in given.replace(",", " ").split()]


Digests = Annotated[frozenset[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], NoDecode, BeforeValidator(_digests)]
"""sha256 values, separated by commas."""


class Settings(BaseSettings):
    """All have defaults that run. Unset stores are embedded ones; what lasts of them lies under `data`.

    `master_key` is the file with the key over all that is sealed in the ledger, `signing_key` that of the private key
    that signs its checkpoints; hosts that share a database share both. `stability_share` is the share of explanations
    that are computed once more, from another sample of the baseline. `trusted_artefacts` are the exported torch
    programs that may be opened, by digest: such a file is code.
    """

    model_config = SettingsConfigDict(env_prefix="ANSWERABLE_", env_file=".env", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    data: Path = Path(".answerable")
    models: Path = Path("models")
    redis_url: str | None = None
    database_url: str | None = None
    key: str | None = None
    master_key: Path | None = None
    signing_key: Path | None = None
    workers: int | None = Field(default=None, ge=1)
    ledger: Literal["required", "best_effort", "off"] = "required"
    max_queued_points: int = Field(default=200_000, ge=1)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    drain_seconds: float = Field(default=10.0, ge=0)
    result_ttl_seconds: int = Field(default=86_400, ge=1)
    stability_share: float = Field(default=0.01, ge=0, le=1)
    trusted_artefacts: Digests = frozenset()

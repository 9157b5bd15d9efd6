"""Settings: environment variables `ANSWERABLE_*`, a `.env` file, or options of `answerable serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from service.logs import Form

PREFIX = "ANSWERABLE_"
SECRETS = ("key", "metrics_key", "database_url", "redis_url")
"""What may be given as the name of a file instead, in `ANSWERABLE_<NAME>_FILE`: a container's secrets are files."""


def _months(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    return {"standard": 25} | dict(one.strip().split("=", 1) for one in given.split(",") if one.strip())


Months = Annotated[dict[str, Annotated[int, Field(ge=1, le=1200)]], NoDecode, BeforeValidator(_months)]
"""Months by retention class: `standard=25,business=12`."""


def _digests(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    return [digest.removeprefix("sha256:") for digest in given.replace(",", " ").split()]


Digests = Annotated[frozenset[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], NoDecode, BeforeValidator(_digests)]
"""sha256 values, separated by commas."""


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets from the files that the environment names; the white space at their ends does not count."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from error

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in SECRETS}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """All have defaults that run. Unset stores are embedded ones; what lasts of them lies under `data`.

    `metrics_key` may read the metrics and nothing else. `master_key` is the file with the key over all that is sealed
    in the ledger, `signing_key` that of the private key that signs its checkpoints; hosts that share a database share
    both. `retention` are the months that personal data is kept, by class, `job_days` the days that jobs and
    exports can be looked up once they have ended. `stability_share` is the share of
    explanations that are computed once more, from another sample of the baseline. `trusted_artefacts` are the exported
    torch programs that may be opened, by digest: such a file is code.
    `logs` says how the log is written. `traces_endpoint` is where traces go, by OTLP over HTTP; unset: nowhere.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    data: Path = Path(".answerable")
    models: Path = Path("models")
    redis_url: str | None = None
    database_url: str | None = None
    key: str | None = None
    metrics_key: str | None = None
    master_key: Path | None = None
    signing_key: Path | None = None
    retention: Months = {"standard": 25}
    job_days: int = Field(default=30, ge=1, le=36_500)
    workers: int | None = Field(default=None, ge=1)
    ledger: Literal["required", "best_effort", "off"] = "required"
    max_queued_points: int = Field(default=200_000, ge=1)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    drain_seconds: float = Field(default=10.0, ge=0)
    result_ttl_seconds: int = Field(default=86_400, ge=1)
    stability_share: float = Field(default=0.01, ge=0, le=1)
    logs: Form = "json"
    traces_endpoint: str | None = None
    trusted_artefacts: Digests = frozenset()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options first, then the environment, then files that the environment names, then `.env`."""
        return init_settings, env_settings, _SecretFiles(settings_cls), dotenv_settings

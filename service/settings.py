"""Settings: environment variables `ANSWERABLE_*`, a `.env` file, or options of `answerable serve`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from service.errors import SetupError
from service.logs import Form
from service.wording import sentence_of_fault

PREFIX = "ANSWERABLE_"
DOTENV = ".env"
MIN_KEY_LENGTH = 20
"""Characters of a key: whoever has it may read and erase everything, and can be tried without a limit."""
SECRETS = ("key", "metrics_key", "database_url", "redis_url")
"""Settings that may be in a file, which `ANSWERABLE_<NAME>_FILE` names: containers have secrets as files."""


def _months(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [pair.strip().split("=", 1) for pair in value.split(",") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("write classes and months as standard=25,business=12")
    return {"standard": 25} | dict(pairs)


Months = Annotated[dict[str, Annotated[int, Field(ge=1, le=1200)]], NoDecode, BeforeValidator(_months)]
"""Months by retention class: `standard=25,business=12`."""


def _digests(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [digest.removeprefix("sha256:") for digest in value.replace(",", " ").split()]


Digests = Annotated[frozenset[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], NoDecode, BeforeValidator(_digests)]
"""sha256 values, separated by commas."""

OperatorKey = Annotated[str, Field(min_length=MIN_KEY_LENGTH)]


def _address(*schemes: str) -> AfterValidator:
    """Refuses URLs with other schemes or an invalid port; messages do not repeat the URL, which may hold a password."""

    def check(url: str) -> str:
        begins = " or ".join(f"{scheme}://" for scheme in schemes)
        try:
            parts = urlsplit(url)
        except ValueError:  # whose sentence repeats what lies between brackets, or all before the path
            raise ValueError("it is no address; write a password's special signs as %XX") from None
        if parts.scheme.partition("+")[0] not in schemes or "://" not in url:
            raise ValueError(f"it must begin with {begins}")
        try:
            parts.port  # noqa: B018 - reading it is the check
        except ValueError:
            raise ValueError("its port is not a number up to 65535; write a password's special signs as %XX") from None
        return url

    return AfterValidator(check)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Models = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
"""A folder, or an address, of one of `service/lifecycle/serving/registries`."""


def is_confidential(url: str) -> bool:
    """Whether nobody in between can change what is fetched from there: by https, or from this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets from the files that the environment names, without white space at their ends."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if path is None:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise SettingsError(f"{variable}: {path} is not text") from None

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in SECRETS}
        return {name: value for name, value in values.items() if value is not None}


class Settings(BaseSettings):
    """All have defaults with which the service runs. Stores that are not set are embedded, with their files in `data`.

    `models` is a folder, or the address of a registry from which versions are fetched.

    `metrics_key` may read the metrics and nothing else. `master_key` is the file with the key that seals personal data
    in the ledger, `signing_key` the file with the private key that signs its checkpoints; hosts that share a database
    share both. `retention` has the months for which personal data is kept, by class, `job_days` the days for which jobs
    and exports can be looked up once they have ended. `stability_share` is the share of explanations that are computed
    again, from another sample of the baseline and near the input. `trusted_artefacts` are the exported torch programs
    that may be opened, by digest: such a file is code.
    `keep_alive_seconds` is how long an idle connection stays open: longer than a proxy keeps its own, which is a minute
    for most, or the proxy sends a request into a connection that is being closed.
    `max_connections` may be open at once, fewer where the system lets this process open few files.
    `oidc_issuer` is the OpenID Connect issuer whose tokens are accepted, for `oidc_audience`; the claims named by
    `oidc_tenant_claim` and `oidc_scopes_claim` hold their tenant and scopes, at a path of names with dots between them
    if there is no claim of the whole name.
    `tls_certificate` is a PEM file with the server's certificate and those that lead to its authority, `tls_key` its
    private key; with `tls_client_ca` a client needs a certificate of these authorities.
    `logs` says how the log is written. `traces_endpoint` is where traces go, by OTLP over HTTP; unset: nowhere.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=DOTENV, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    data: Path = Path(".answerable")
    models: Models = "models"
    redis_url: Annotated[str, _address("redis", "rediss", "unix")] | None = None
    database_url: Annotated[str, _address("sqlite", "postgresql", "postgres")] | None = None
    key: OperatorKey | None = None
    metrics_key: OperatorKey | None = None
    master_key: Path | None = None
    signing_key: Path | None = None
    retention: Months = {"standard": 25}
    job_days: int = Field(default=30, ge=1, le=36_500)
    workers: int | None = Field(default=None, ge=1)
    ledger: Literal["required", "best_effort", "off"] = "required"
    max_queued_points: int = Field(default=200_000, ge=1)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    drain_seconds: float = Field(default=10.0, ge=0)
    keep_alive_seconds: int = Field(default=75, ge=1)
    max_connections: int = Field(default=1024, ge=1)
    result_ttl_seconds: int = Field(default=86_400, ge=1)
    stability_share: float = Field(default=0.01, ge=0, le=1)
    oidc_issuer: Annotated[str, _address("https", "http")] | None = None
    oidc_audience: str | None = None
    oidc_tenant_claim: str = Field(default="tenant", min_length=1)
    oidc_scopes_claim: str = Field(default="scope", min_length=1)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    logs: Form = "json"
    traces_endpoint: str | None = None
    trusted_artefacts: Digests = frozenset()

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Settings:
        needs = {
            "oidc_issuer": "oidc_audience",
            "oidc_audience": "oidc_issuer",
            "tls_certificate": "tls_key",
            "tls_key": "tls_certificate",
            "tls_client_ca": "tls_certificate",
        }
        for name, needed in needs.items():
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{PREFIX}{name.upper()} needs {PREFIX}{needed.upper()}")
        if self.oidc_issuer is not None and not is_confidential(self.oidc_issuer):
            raise ValueError(f"{PREFIX}OIDC_ISSUER must begin with https://, unless it is on this machine")
        return self

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


def read_settings(options: dict[str, Any]) -> Settings:
    """The settings, `options` of the command line before all else. Raises SetupError, which repeats no value."""
    try:
        return Settings(**options)
    except SettingsError as error:
        raise SetupError(str(error), code=2) from None
    except ValidationError as error:
        raise SetupError(
            "; ".join(map(_sentence, error.errors(include_url=False, include_input=False))), code=2
        ) from None


def _sentence(fault: Any) -> str:
    return sentence_of_fault(f"{PREFIX}{str(fault['loc'][0]).upper()}" if fault["loc"] else "", fault)


def unknown_settings() -> list[str]:
    """A sentence for each variable of the environment and `.env` that looks like a setting but is unknown."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    return [_unknown_sentence(name, known) for name in _names_set() if name.upper() not in known]


def _names_set() -> Iterable[str]:
    names = [*os.environ, *(dotenv_values(DOTENV) if Path(DOTENV).is_file() else ())]
    return dict.fromkeys(name for name in names if name.upper().startswith(PREFIX))


def _unknown_sentence(name: str, known: Iterable[str]) -> str:
    words = [variable.removeprefix(PREFIX) for variable in known]
    nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), words, n=1)
    return f"{name} is no setting and changes nothing" + (f"; did you mean {PREFIX}{nearest[0]}?" if nearest else "")


def forget_secrets() -> None:
    """Removes the secrets from this process's environment, which child processes inherit."""
    secrets = {f"{PREFIX}{name.upper()}" for name in SECRETS}
    for name in [name for name in os.environ if name.upper() in secrets]:
        del os.environ[name]

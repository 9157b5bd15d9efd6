"""What the routes work with: opened by the composition root (`service.app`), closed by it when the service stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.answers.cache import Cache
from service.api.auth import Authenticator
from service.api.transport import Bodies
from service.api.turns import Turns
from service.background.exporting import Exports
from service.background.jobs import Runner
from service.catalog.versions import Catalog
from service.engine.protocol import Engine
from service.errors import NotFound
from service.ledger import Keys, Ledger, Vault
from service.ledger.jobs import Jobs
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.set_subjects import SetSubjects
from service.lifecycle.serving.evaluations import Evaluations
from service.lifecycle.serving.repository import Repository
from service.monitoring.metrics import Metrics
from service.monitoring.request_log import RequestLog
from service.monitoring.tracing import Tracing
from service.usecases.counterfactual import Counterfactuals
from service.usecases.explaining import Explaining, LedgerMode
from service.usecases.replaying import Replaying
from service.usecases.robustness import Robustness


@dataclass(frozen=True, slots=True)
class LedgerServices:
    """What there is where a ledger is kept: its records, and the jobs whose results are records."""

    ledger: Ledger
    maintenance: LedgerMaintenance
    jobs: Jobs
    exports: Exports
    runner: Runner


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that was opened, by what it does. `app.state.services` holds it while the service runs.

    `with_ledger` is None where the settings say that no ledger is kept. `ledger_notices` are sentences for the operator
    about what this start found of the ledger. `bootstrap_key` is the operator's key, if it is known. `loading` ends
    when the workers have loaded the models.
    """

    catalog: Catalog
    repository: Repository
    engine: Engine
    explaining: Explaining
    replaying: Replaying
    counterfactuals: Counterfactuals
    robustness: Robustness
    cache: Cache
    keys: Keys
    authenticator: Authenticator
    vault: Vault
    set_subjects: SetSubjects
    with_ledger: LedgerServices | None
    ledger_mode: LedgerMode
    ledger_notices: Sequence[str]
    metrics: Metrics
    render_metrics: Callable[[], bytes]
    request_log: RequestLog | None
    tracing: Tracing | None
    evaluations: Evaluations
    bodies: Bodies
    turns: Turns
    bootstrap_key: str | None
    loading: asyncio.Task[None]

    @property
    def ledger(self) -> Ledger | None:
        """The ledger, where one is kept."""
        return None if self.with_ledger is None else self.with_ledger.ledger

    def need_ledger(self) -> LedgerServices:
        """What there is with a ledger. Raises NotFound where none is kept."""
        if self.with_ledger is None:
            raise NotFound("this service keeps no ledger")
        return self.with_ledger

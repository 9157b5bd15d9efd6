"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.permissions import OPEN, OPERATOR_TENANT, Policy
from service.access.quotas import Account


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

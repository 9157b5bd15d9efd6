"""The caller of a request or the owner of a job."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.permissions import OPEN, OPERATOR_TENANT, Policy
from service.access.quotas import Account


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant and the id of a key, its scopes and policy, and its account, if it has a quota."""

    tenant: str
    key_id: str
    scopes: frozenset[str] = frozenset()
    policy: Policy = OPEN
    account: Account | None = None

    @property
    def is_operator(self) -> bool:
        """Whether the key is one of the operator's, which may change what all tenants share."""
        return self.tenant == OPERATOR_TENANT

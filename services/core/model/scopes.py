"""Scopes: what a key, or a session that a key has opened, may ask for. The same words stand on keys and on routes.

No scope includes another: a key lists each one that it has.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from services.core.model.errors import MissingScope, TenantSuspended


class Scope(StrEnum):
    VIEW = "view"  # read everything of the tenant
    SUBMIT = "submit"  # make work: jobs, drafts, files, uploads, batches, retries, exports
    OPERATE = "operate"  # steer and remove it: priority, pause, cancel, delete
    ADMIN = "admin"  # keys, and what the content policy refuses; in the operator's tenant, every tenant


ALL = tuple(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a key, by its id and name, or somebody whom a provider has signed in, by name alone. `session` is the
    sha256 of the cookie of a browser's session, if they came by one. `operator`: of the first tenant, whose keys see
    and steer what belongs to no tenant. `suspended`: the tenant takes no new work.
    `requests_per_second` is its rate limit."""

    tenant_id: int
    key_id: str
    name: str
    scopes: frozenset[Scope]
    session: bytes | None = None
    operator: bool = False
    suspended: bool = False
    requests_per_second: float | None = None

    @property
    def actor(self) -> str:
        """As events name it."""
        return f"key/{self.key_id}" if self.key_id else f"user/{self.name}"

    @property
    def sees_hosts(self) -> bool:
        """Whether they are shown which host a worker is on: in the operator's tenant, who may operate."""
        return self.operator and Scope.OPERATE in self.scopes

    def require(self, scope: Scope, act: str) -> None:
        """`act` names what is asked for, as in "cancel_job". Raises MissingScope."""
        if scope not in self.scopes:
            raise MissingScope(f"{act} needs a key with the scope {scope.value!r}; this one has {words(self.scopes)}.")
        if scope is Scope.SUBMIT and self.suspended:
            raise TenantSuspended


def words(scopes: Collection[Scope]) -> str:
    """The scopes in words for a sentence, in their usual order."""
    return ", ".join(scope.value for scope in ALL if scope in scopes) or "none"

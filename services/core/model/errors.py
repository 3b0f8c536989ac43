"""The exceptions of Presswork. Each class's docstring is its default message, which users see.

`Unavailable` is the family of outages: they are worth trying again and are never an image's fault.
"""

from dataclasses import dataclass


class PressworkError(Exception):
    """Something went wrong in Presswork."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SettingsError(PressworkError):
    """A setting is missing or cannot be used."""


class Unavailable(PressworkError):
    """A server that Presswork needs cannot be reached."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The database takes no writes right now."""


class StoreUnavailable(Unavailable):
    """The object store cannot be reached."""


class StoreRefused(StoreUnavailable):
    """The object store refused the request: check its address, the bucket and the credentials."""


class PolicyUnavailable(Unavailable):
    """A content policy cannot be asked right now."""


class NoModels(Unavailable):
    """No model is registered yet; the first worker that is ready does so."""


class ObjectMissing(StoreRefused):
    """The object store does not have this object any more."""


class NotFound(PressworkError):
    """There is no such thing, or it belongs to another tenant."""


class Conflict(PressworkError):
    """The request is not possible in the current state."""

    def __init__(self, message: str | None = None, code: str = "conflict") -> None:
        self.code = code
        super().__init__(message)


class InvalidKey(PressworkError):
    """This needs one valid API key, as `Authorization: Bearer pw_...`."""

    def __init__(self, message: str | None = None, code: str = "invalid_api_key") -> None:
        self.code = code
        super().__init__(message)


class MissingScope(PressworkError):
    """This key lacks the scope that this needs."""


class NotAdmitted(PressworkError):
    """The tenant may have no new work now."""


class TenantSuspended(NotAdmitted):
    """This tenant is suspended: it takes no new work until an administrator of the installation makes it active."""


class NotOperator(PressworkError):
    """Tenants are made and changed with a key of the operator's tenant, the first one."""


class QuotaExceeded(NotAdmitted):
    """A quota of the tenant does not allow this. `retry_seconds` None: it never will, whatever is used."""

    def __init__(self, message: str, retry_seconds: int | None) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message)


class UnsuitableDatabase(PressworkError):
    """The database is not set up as Presswork needs it."""


class InvariantViolated(PressworkError):
    """The queue found rows that its rules forbid; nothing was changed."""


REFUSED_BY_POLICY = "content_policy"  # the code of a refused prompt, and of a picture that an image policy refuses
REFUSED_BY_CHECKER = "safety_checker"  # of a picture that the model's own checker refuses
NEVER_RETRIED = (REFUSED_BY_POLICY, REFUSED_BY_CHECKER)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a submission: a stable code, a sentence, the field, and its line or index."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class InvalidSubmission(PressworkError):
    """The submission was refused; nothing of it was recorded."""

    def __init__(self, problems: list[Problem], *, more: bool = False) -> None:
        self.problems, self.more = problems, more
        super().__init__(problems[0].message if problems else None)


class IdempotencyConflict(PressworkError):
    """This Idempotency-Key was used before with another body."""


class IdempotencyGone(PressworkError):
    """What this Idempotency-Key made was deleted or has expired; send another key to make it again."""


class IdempotencyBusy(PressworkError):
    """A request with this Idempotency-Key is being handled right now; try again in a moment."""

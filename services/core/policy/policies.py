"""What may be asked for: the content policy that every prompt passes before it is queued.

It is a tenant's own terms, the installation's list of terms, and the policies that installed distributions bring
(`judging.py`), in this order. Whoever adds requests to a job asks it: `Submission`, and the copies that retries and
redraws make. Terms are looked for in prompts alone: a negative prompt names what a picture must not show, and draws
nothing.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Connection

from services.core.model import terms as folding
from services.core.model.errors import REFUSED_BY_POLICY, PolicyUnavailable, SettingsError
from services.core.model.licenses import License
from services.core.model.terms import Terms
from services.core.policy import judging, licenses, terms
from services.core.policy.licenses import Acceptances
from services.core.policy.refusals import Door
from services.core.settings import Settings, reason

log = logging.getLogger(__name__)
CODE = REFUSED_BY_POLICY
NOT_ACCEPTED = "license_not_accepted"  # the code of what is refused until somebody accepts a licence
AT_ONCE = 256  # prompts that a policy of a distribution is asked about
_BY_TERMS = "has a term that this tenant's content policy refuses"
_BY_LIST = "has a term that this installation's content policy refuses"


@lru_cache(maxsize=32)
def _compiled(own: tuple[str, ...]) -> Terms:
    """Kept for the next submission: folding thousands of terms takes longer than all else that a small one needs."""
    return Terms(own)


class Policy:
    """The policy of one tenant at one moment."""

    def __init__(
        self, own: Sequence[str] = (), listed: Terms | None = None, judge: judging.Judge | None = None,
        accepted: Acceptances | None = None, door: Door | None = None,
    ) -> None:  # fmt: skip
        """`accepted`: the licences that were accepted, if models are drawn with only then. `door`: for what it refuses
        to be recorded; None: it is asked about texts, and nothing is queued."""
        self._door = door
        self._accepted = accepted
        self._own, self._listed, self._judge = _compiled(tuple(own)), listed or Terms(()), judge

    @property
    def looks(self) -> bool:
        """Whether there is anything that it could refuse."""
        return bool(self._own or self._listed or self._judge)

    @property
    def door(self) -> Door:
        """Where the prompts came in."""
        assert self._door is not None, "a policy without a door only answers questions"
        return self._door

    @property
    def requires_licenses(self) -> bool:
        """Whether a model's licence must be accepted."""
        return self._accepted is not None

    def license_refusal(self, model: str, given: License | None) -> str | None:
        """Why nothing may be drawn with that model, as a sentence; None: it may."""
        if self._accepted is None or given is None or self._accepted.of(given) is not None:
            return None
        return (
            f"The licence of the model {model}, {given.name}, has not been accepted; somebody with the scope admin "
            f"does so once, on the model's page or with `presswork model accept-license {model}`."
        )

    def refusals(self, prompts: Sequence[str]) -> list[str | None]:
        """For each prompt why it is refused, as the end of a sentence that begins with the prompt; None: it is not.
        No reason quotes a prompt.

        Raises:
            PolicyUnavailable: a policy of a distribution failed or took too long, and the settings say to refuse then.
        """
        found = [
            _BY_TERMS if self._own.find(prompt) else _BY_LIST if self._listed.find(prompt) else None
            for prompt in prompts
        ]
        if self._judge is None:
            return found
        rest = [place for place, refusal in enumerate(found) if refusal is None]
        for first in range(0, len(rest), AT_ONCE):
            some = rest[first : first + AT_ONCE]
            for place, refusal in zip(some, self._judge.ask([prompts[place] for place in some]), strict=True):
                found[place] = refusal
        return found

    def terms_in(self, text: str) -> tuple[list[str], list[str]]:
        """The tenant's own terms that the text holds, and those of the installation's list."""
        return self._own.find(text), self._listed.find(text)


NOTHING = Policy()  # refuses nothing


def at(settings: Settings, connection: Connection, door: Door) -> Policy:
    """The policy of the door's tenant as it is now. Raises PolicyUnavailable: the installation's list is unreadable."""
    return _of(settings, connection, door.tenant_id, door)


def of_tenant(settings: Settings, connection: Connection, tenant_id: int) -> Policy:
    """The same, for whoever asks about texts and queues nothing."""
    return _of(settings, connection, tenant_id, None)


def _of(settings: Settings, connection: Connection, tenant_id: int, door: Door | None) -> Policy:
    listed = None
    if settings.policy_list:
        try:
            listed = _listed(settings.policy_list)
        except SettingsError as error:
            log.error("policy list unreadable", extra={"error": str(error)})
            raise PolicyUnavailable from None
    accepted = licenses.accepted(connection, tenant_id) if settings.require_license_acceptance else None
    return Policy(terms.texts(connection, tenant_id), listed, judging.opened(settings), accepted, door)


def check(settings: Settings) -> None:
    """At the start of a process that takes requests. Raises SettingsError: the list cannot be read, or a policy that is
    chosen is not installed or cannot be opened."""
    if settings.policy_list:
        _listed(settings.policy_list)
    judging.check(settings)


def _listed(path: str) -> Terms:
    """The terms of the file, which is read again when it has changed."""
    try:
        state = Path(path).stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"PRESSWORK_POLICY_LIST names {path!r}, which cannot be read: {reason(error)}.") from None


@lru_cache(maxsize=4)
def _read(path: str, _changed: int, _size: int) -> Terms:
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        term = line.strip()
        if not term or term.startswith("#"):
            continue
        if len(term) > folding.LONGEST or not folding.folded(term):
            raise SettingsError(
                f"PRESSWORK_POLICY_LIST: line {number:,} of {path!r} is no term; a term has a letter or a digit, "
                f"and at most {folding.LONGEST} characters."
            )
        found.append(term)
    return Terms(found)

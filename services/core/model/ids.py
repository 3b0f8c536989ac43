"""Ids: time-ordered integers inside, text such as `file-0d5k...` outside. Knowing an id grants no access."""

import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from services.core.model.errors import NotFound

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}
_LETTERS = 13
LIMIT = 2**63
# An id is the milliseconds since EPOCH followed by 22 random bits: sorting by id sorts by age.
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
RANDOM_BITS = 22


def new() -> int:
    """A new id. Ids made in different milliseconds sort by age; those of one millisecond have no order."""
    milliseconds = int(time.time() * 1000) - int(EPOCH.timestamp() * 1000)
    return milliseconds << RANDOM_BITS | secrets.randbits(RANDOM_BITS)


def public(prefix: str, number: int) -> str:
    """The public form of an id: the prefix (such as `job_`) and 13 characters of Crockford's base 32."""
    return prefix + "".join(_ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def parse(prefix: str, public: str, noun: str) -> int:
    """The inverse of `public`. Raises NotFound if the text is not such an id."""
    letters = public.removeprefix(prefix)
    valid = len(public) == len(prefix) + _LETTERS and len(letters) == _LETTERS
    value = 0
    for letter in letters if valid else "":
        valid = valid and letter in _DIGITS
        value = value << 5 | _DIGITS.get(letter, 0)
    if not valid or value >= LIMIT:
        raise NotFound(f"There is no such {noun}.")
    return value


@lru_cache(1_000)  # of the same few jobs, for each image
def public_job(job_id: int) -> str:
    return public("job_", job_id)


def parse_job(public: str) -> int:
    """The inverse of `public_job`. Raises NotFound if the text is not a job's id."""
    return parse("job_", public, "job")


def floor(moment: datetime) -> int:
    """The smallest id that can be made at that moment."""
    return int((moment - EPOCH) / timedelta(milliseconds=1)) << RANDOM_BITS


def moment(number: int) -> datetime:
    """When the id was made, to the millisecond."""
    return EPOCH + timedelta(milliseconds=number >> RANDOM_BITS)


def epoch(number: int) -> int:
    """When the id was made, in seconds since 1970."""
    return int(moment(number).timestamp())

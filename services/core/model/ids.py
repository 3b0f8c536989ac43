"""Ids: time-ordered numbers within, `file-0d5k...` for people. Hard to guess, and no right to anything."""

import secrets
import time
from datetime import UTC, datetime, timedelta

from services.core.model.errors import NotFound

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}
_LETTERS = 13
LIMIT = 2**63
# Milliseconds since the epoch below, shifted left by 22 random bits: what is sorted by id is sorted by age.
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
RANDOM_BITS = 22


def new() -> int:
    """A fresh id: milliseconds first, so that what is sorted by id is sorted by age."""
    milliseconds = int(time.time() * 1000) - int(EPOCH.timestamp() * 1000)
    return milliseconds << RANDOM_BITS | secrets.randbits(RANDOM_BITS)


def public(prefix: str, number: int) -> str:
    """How people see it: the prefix (such as `job_`) and 13 characters of Crockford's base 32."""
    return prefix + "".join(_ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def parse(prefix: str, public: str, noun: str) -> int:
    """The inverse; NotFound for anything that is no such id."""
    letters = public.removeprefix(prefix)
    fits = len(public) == len(prefix) + _LETTERS and len(letters) == _LETTERS
    value = 0
    for letter in letters if fits else "":
        fits = fits and letter in _DIGITS
        value = value << 5 | _DIGITS.get(letter, 0)
    if not fits or value >= LIMIT:
        raise NotFound(f"There is no such {noun}.")
    return value


def public_job(job_id: int) -> str:
    return public("job_", job_id)


def parse_job(public: str) -> int:
    """The inverse; NotFound for anything that is no job's id."""
    return parse("job_", public, "job")


def floor(moment: datetime) -> int:
    """The smallest id of that moment."""
    return int((moment - EPOCH) / timedelta(milliseconds=1)) << RANDOM_BITS


def moment(number: int) -> datetime:
    """When the id was made, to the millisecond."""
    return EPOCH + timedelta(milliseconds=number >> RANDOM_BITS)


def epoch(number: int) -> int:
    """When the id was made, in seconds since 1970."""
    return int(moment(number).timestamp())

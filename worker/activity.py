"""What this process does that takes long, in words for people: `presswork up`, `doctor` and the API show it."""

from collections.abc import Iterator
from contextlib import contextmanager

_words = [""]


@contextmanager
def doing(words: str) -> Iterator[None]:
    """Within a longer activity, these words take its place."""
    _words.append(words)
    try:
        yield
    finally:
        _words.pop()


def now() -> str:
    return _words[-1]

"""Who acts: the transactions that a task or a thread begins carry its actor, and events that they log name it.

An actor is a kind and a name: `key/Xk29dQ7a`, `user/alice@example.org`, `cli/alice`. Where none is set it is the
program: `scheduler`, or `worker NAME`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_actor: ContextVar[str] = ContextVar("actor", default="")
_WORKER = "worker "


def without_host(actor: str) -> str:
    """The actor, but for the name of a worker, which has its host's."""
    return _WORKER.strip() if actor.startswith(_WORKER) else actor


def current() -> str:
    """Empty: the program itself."""
    return _actor.get()


def act_as(actor: str) -> None:
    """From now on this task or thread, and those that it starts, act as this one."""
    _actor.set(actor)


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Within, this task or thread acts as this one."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)

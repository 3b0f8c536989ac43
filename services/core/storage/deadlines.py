"""Connections to the object store that give up on a peer that hangs or drips.

botocore's own timeout starts anew with each byte received. Here a connection may spend a given time on waiting for the
peer: for the head of each answer and for each MiB of a body, sent or received. The caller's own time does not count.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore import awsrequest, handlers

_MIB = 1 << 20


def limit(client: Any, seconds: float) -> None:
    """Makes every request of the botocore client give up after `seconds` of waiting for the next MiB.

    Also stops botocore from waiting for `100 Continue`: if the peer closes the connection after it, botocore spins.
    """
    client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
    classes = {
        "http": _pool_class(awsrequest.AWSHTTPConnectionPool, seconds),
        "https": _pool_class(awsrequest.AWSHTTPSConnectionPool, seconds),
    }
    session = client._endpoint.http_session  # noqa: SLF001  botocore takes no connection classes from outside
    session._pool_classes_by_scheme = classes  # noqa: SLF001  for the proxies' pools, which are made later
    session._manager.pool_classes_by_scheme = classes  # noqa: SLF001


def _pool_class(pool: type[Any], seconds: float) -> type[Any]:
    class Connection(pool.ConnectionCls):  # type: ignore[name-defined]
        sock: Any

        def connect(self) -> None:
            super().connect()
            self.sock = _Socket(self.sock, _Budget(seconds))

        def request(self, *arguments: Any, **named: Any) -> None:
            if self.sock is not None:
                self.sock.budget.renew()
            super().request(*arguments, **named)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


class _Budget:
    """The time that one request may still wait for its peer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._left, self._bytes = self._seconds, 0

    @contextmanager
    def waiting(self, sock: Any) -> Iterator[None]:
        """One call that may block."""
        if self._left <= 0:
            raise TimeoutError(f"less than a MiB in {self._seconds:g} s")
        sock.settimeout(self._left)
        began = time.monotonic()
        try:
            yield
        finally:
            self._left -= time.monotonic() - began

    def passed(self, count: int | None) -> None:
        self._bytes += count or 0
        if self._bytes >= _MIB:
            self.renew()


class _Socket:
    """A connected socket, plain or TLS, whose calls use up a budget. http.client and urllib3 use it as a socket."""

    def __init__(self, sock: Any, budget: _Budget) -> None:
        self._sock, self.budget = sock, budget

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view:
            with self.budget.waiting(self._sock):
                sent = self._sock.send(view)
            self.budget.passed(sent)
            view = view[sent:]

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self.budget), 1 << 16)


class _Reader(io.RawIOBase):
    """What http.client reads an answer from. It keeps the socket open until it is closed itself."""

    def __init__(self, sock: Any, budget: _Budget) -> None:
        self._sock, self._budget = sock, budget
        self._file: Any = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        with self._budget.waiting(self._sock):
            count: int | None = self._file.readinto(buffer)
        self._budget.passed(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

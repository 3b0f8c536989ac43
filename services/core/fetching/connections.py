"""One exchange over HTTP with a host that a user named: resolved once, checked, connected to by the checked address.

So a name that changes its address in between changes nothing. A redirect is not followed here. Nothing of the
environment, such as a proxy, is used. A deadline holds for all of it, however slowly the other side sends.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.core.fetching import targets
from services.core.fetching.errors import FetchFailed
from services.core.fetching.targets import Target
from services.core.settings import Network

CONNECT_SECONDS = 10.0
STALL_SECONDS = 60.0  # without a byte
_TOO_SLOW = "{} took too long to answer."
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What users' addresses may lead to. `networks`: allowed although they are not public, by the setting `setting`;
    `http`: unencrypted is."""

    networks: Sequence[Network] = ()
    http: bool = False
    max_bytes: int = 1 << 30
    seconds: float = 600.0
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    setting: str = "PRESSWORK_FETCH_NETWORKS"


@contextmanager
def exchange(
    target: Target,
    rules: Rules,
    deadline: float,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    connected: Callable[[str], object] = lambda _: None,
) -> Iterator[http.client.HTTPResponse]:
    """The answer, with its body unread. `deadline`: of time.monotonic(). `connected` is told the IP address. Raises
    FetchFailed, also for what fails while the body is read within this context."""
    connection = _Connection(target, rules, deadline, connected)
    guard = threading.Timer(max(0.0, deadline - time.monotonic()), connection.abort)
    guard.daemon = True
    guard.start()
    try:
        connection.request(method, target.path, body, {"Host": target.authority, **(headers or {})})
        yield connection.getresponse()
        if connection.is_aborted:  # what came until then looks like a whole answer
            raise FetchFailed("too_slow", _TOO_SLOW.format(target.host), again=True)
    except (OSError, http.client.HTTPException, FetchFailed) as error:
        if connection.is_aborted or time.monotonic() >= deadline:
            raise FetchFailed("too_slow", _TOO_SLOW.format(target.host), again=True) from None
        if isinstance(error, FetchFailed):
            raise
        raise FetchFailed("unreachable", f"{target.host} cannot be read: {_reason(error)}.", again=True) from None
    finally:
        guard.cancel()
        connection.close()


def assert_allowed(target: Target, rules: Rules, seconds: float) -> None:
    """Raises FetchFailed if the name has an address now that may not be connected to. One that has none passes."""
    try:
        found = _resolved(target, time.monotonic() + seconds)
    except FetchFailed:
        if not rules.networks:
            targets.check_port(target)
        return
    targets.check(target, [str(address[0]) for _, address in found], rules.networks, rules.setting)


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, and speaks to the host by its name."""

    def __init__(self, target: Target, rules: Rules, deadline: float, connected: Callable[[str], object]) -> None:
        super().__init__(target.host, target.port)
        self._connected_to = connected
        self._target, self._rules, self._deadline = target, rules, deadline
        self._raw: socket.socket | None = None
        self.is_aborted = False

    def connect(self) -> None:
        found = _resolved(self._target, self._deadline)
        targets.check(
            self._target, [str(address[0]) for _, address in found], self._rules.networks, self._rules.setting
        )
        self._raw = self._connected(found)
        self.sock = self._raw
        if self._target.scheme == "https":
            self.sock = self._rules.tls.wrap_socket(self._raw, server_hostname=self._target.host)
            self._raw = self.sock

    def abort(self) -> None:
        """Ends whatever waits for the other side."""
        self.is_aborted = True
        if self._raw is not None:
            try:
                socket.socket.shutdown(self._raw, socket.SHUT_RDWR)
            except OSError:  # it is closed already
                pass

    def _connected(self, addresses: Sequence[_Address]) -> socket.socket:
        last: OSError = OSError("it has no address")
        for family, address in addresses:
            found = socket.socket(family, socket.SOCK_STREAM)
            try:
                found.settimeout(max(0.01, min(CONNECT_SECONDS, self._deadline - time.monotonic())))
                found.connect(address)
                found.settimeout(max(0.01, min(STALL_SECONDS, self._deadline - time.monotonic())))
                self._connected_to(str(address[0]))
                return found
            except OSError as error:
                found.close()
                last = error
        raise last


def _resolved(target: Target, deadline: float) -> list[_Address]:
    """The name's addresses. The system's resolver has no deadline of its own, so it runs in a thread."""
    future: Future[list[_Address]] = Future()

    def resolve() -> None:
        try:
            rows = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            future.set_result([(row[0], row[4]) for row in rows])  # type: ignore[misc]
        except (OSError, UnicodeError) as error:
            future.set_exception(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        return future.result(max(0.0, min(CONNECT_SECONDS, deadline - time.monotonic())))
    except TimeoutError:
        raise FetchFailed("unreachable", f"{target.host} has no address that can be found.", again=True) from None
    except (OSError, UnicodeError):
        raise FetchFailed("unreachable", f"{target.host} has no address that can be found.", again=True) from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, http.client.IncompleteRead):
        return "its answer ends too early"
    if isinstance(error, http.client.HTTPException):
        return "its answer is not HTTP"
    return (getattr(error, "strerror", None) or type(error).__name__).lower()

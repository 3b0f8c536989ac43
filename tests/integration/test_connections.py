"""Connections that say nothing, never end or are never read: ended by a deadline, and never in the way of others."""

import dataclasses
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from tests.waiting import until
from tests.web import Api, serving

SOON = {"head_seconds": 0.3, "body_seconds": 0.3, "write_seconds": 0.3}
HALF_A_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
STRANGER = ("127.0.0.2", 0)  # all of 127.0.0.0/8 is this machine


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@contextmanager
def served_with(api: Api, **changes: float) -> Iterator[httpx.Client]:
    with serving(dataclasses.replace(api.settings, **changes)) as url:
        headers = {"Authorization": f"Bearer {api.key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False) as http:
            yield http


def connect(http: httpx.Client, source: tuple[str, int] | None = None) -> socket.socket:
    return socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=20, source_address=source)


def is_over(connection: socket.socket, send: bytes = b"") -> bool:
    """Whether the server has ended it; else sends some more."""
    connection.setblocking(False)
    try:
        with suppress(BlockingIOError):
            if not connection.recv(65536):
                return True
        with suppress(BlockingIOError):
            connection.sendall(send)
    except OSError:
        return True
    return False


def drips(begin: bytes, send: bytes) -> Callable[[httpx.Client], None]:
    """A client that sends this, and then one of these bytes again and again."""

    def talk(http: httpx.Client) -> None:
        with connect(http) as connection:
            connection.sendall(begin)
            until(lambda: is_over(connection, send), every=0.02)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        drips(b"", b""), drips(HALF_A_HEAD, b""), drips(HALF_A_HEAD, b"x"),
        drips(HALF_A_HEAD + b"\r\n" + HALF_A_HEAD, b"x"),
    ],
    ids=["silent", "half-a-head", "dripping", "dripping-after-an-answer"],
)  # fmt: skip
def test_a_head_that_does_not_arrive_ends_the_connection(api: Api, talk: Callable[[httpx.Client], None]) -> None:
    with served_with(api, **SOON) as http:
        talk(http)


def test_a_body_that_stops_coming_or_drips_is_not_waited_for(api: Api) -> None:
    row = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
    begin = (row + "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n").encode()
    with served_with(api, **SOON) as http:
        for send in (b"", b" "):
            with connect(http) as connection:
                connection.sendall(begin)
                found = b""
                while b"\r\n\r\n" not in found:
                    connection.settimeout(0.02)
                    with suppress(TimeoutError):
                        found += connection.recv(65536)
                    connection.sendall(send)
                assert found.startswith(b"HTTP/1.1 408 ")


def test_a_slow_head_and_a_slow_reader_that_go_on_are_served(api: Api) -> None:
    with served_with(api, head_seconds=5, write_seconds=0.3) as http, connect(http) as connection:
        for letter in HALF_A_HEAD + b"Connection: close\r\n\r\n":
            connection.sendall(bytes([letter]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_is_not_read_is_given_up(api: Api) -> None:
    data = b"x" * (12 << 20)  # more than the kernel takes for a reader that does not read
    file = api.http.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}).json()["id"]
    row = f"GET /v1/files/{file}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n\r\n"
    with served_with(api, write_seconds=0.3) as http, ExitStack() as stack:
        assert len(http.get(f"/v1/files/{file}/content").content) == len(data)
        readers = [stack.enter_context(connect(http)) for _ in range(3)]
        for reader in readers:
            reader.sendall(row.encode())
        for reader in readers:  # how much arrives shows that the server has not sent all
            until(lambda reader=reader: _is_reset(reader))
            assert _rest(reader) < len(data)
        assert http.get("/livez").status_code == 200


def _is_reset(connection: socket.socket) -> bool:
    """Whether the other end is gone, without reading what it sent."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    established = 1
    return info[0] != established


def _rest(connection: socket.socket) -> int:
    taken = 0
    with suppress(OSError):
        while found := connection.recv(1 << 20):
            taken += len(found)
    return taken


def test_strangers_never_use_the_connections_of_known_clients(api: Api) -> None:
    with served_with(api, max_connections=16) as http, ExitStack() as stack:
        assert http.get("/v1/jobs").status_code == 200  # from now on its address is known
        addresses = [(f"127.0.0.{number}", 0) for number in range(2, 9)]
        for source in addresses:
            for _ in range(6):
                stack.enter_context(connect(http, source))
        refused = connect(http, STRANGER)
        answer = refused.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nX-Request-Id: req_" in answer
        assert b"too_many_connections" in answer
        refused.close()
        for _ in range(3):
            with httpx.Client(base_url=http.base_url, headers=http.headers, trust_env=False) as another:
                assert another.get("/v1/jobs").status_code == 200


def test_a_strangers_place_is_free_again_when_it_leaves(api: Api) -> None:
    with served_with(api, max_connections=16) as http:
        for _ in range(12):
            with connect(http, STRANGER) as connection:
                connection.sendall(HALF_A_HEAD + b"Connection: close\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
                until(lambda connection=connection: is_over(connection), every=0.01)

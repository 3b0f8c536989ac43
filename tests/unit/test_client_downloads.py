"""How the client fetches stored files: to their end, or with an error."""

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from presswork_client import ClientError
from presswork_client.transport import Transport

CONTENT = bytes(range(256)) * 400


class Store(BaseHTTPRequestHandler):
    """`/trickle` sends a byte now and then, without an end; `/moved` redirects; anything else is CONTENT."""

    def do_GET(self) -> None:
        self.send_response(307 if self.path == "/moved" else 200)
        self.send_header("Location", "/whole")
        self.send_header("Content-Length", str(0 if self.path == "/moved" else len(CONTENT)))
        self.end_headers()
        if self.path == "/trickle":
            while not self.server.ended.wait(0.02):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        elif self.path != "/moved":
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.ended = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.ended.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture
def transport(url: str) -> Iterator[Transport]:
    """One that waits a quarter of a second for an answer."""
    made = Transport(url, "key", timeout=0.25, patience=0.0, on_wait=None)
    yield made
    made.close()


def test_a_download_of_which_next_to_nothing_comes_ends_with_an_error(
    url: str, transport: Transport, tmp_path: Path
) -> None:
    """Each byte comes in time, so that no single wait is too long."""
    for fetch in (
        lambda: transport.fetch(f"{url}/trickle"),
        lambda: transport.save(f"{url}/trickle", tmp_path / "a.tar", "0" * 64),
    ):
        with pytest.raises(ClientError) as refused:
            fetch()
        assert refused.value.code == "too_slow"
        assert "is too slow: fewer than 1,024 bytes came in a second" in refused.value.message


def test_a_reader_that_is_busy_with_what_came_is_no_slow_server(url: str, transport: Transport, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    transport.save(f"{url}/whole", tmp_path / "a.tar", sha256, lambda _: time.sleep(0.3))
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_link_that_redirects_is_followed(url: str, transport: Transport) -> None:
    assert transport.fetch(f"{url}/moved") == CONTENT

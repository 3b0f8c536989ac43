"""Fetching from addresses that users name: what is refused, and what a hostile server can do. The sockets are real."""

import gzip
import hashlib
import io
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from services.core.fetching import targets
from services.core.fetching.connections import Rules
from services.core.fetching.errors import FetchFailed
from services.core.fetching.fetch import Fetched, fetch
from services.core.fetching.targets import Target

HERE = (ip_network("127.0.0.1/32"),)
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server on this machine; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET  # noqa: N815  http.server's name

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}/feed.csv?token=secret"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes = b"", status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    given = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in given.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def got(url: str, **how: Any) -> tuple[bytes, Fetched | None]:
    file = io.BytesIO()
    known = {name: how.pop(name) for name in ("etag", "modified") if name in how}
    found = fetch(url, file, Rules(**({"networks": HERE, "http": True, "seconds": 20} | how)), **known)
    return file.getvalue(), found


def refused(url: str, **how: Any) -> str:
    began = time.monotonic()
    with pytest.raises(FetchFailed) as caught:
        got(url, **how)
    assert time.monotonic() - began < 10
    assert "secret" not in str(caught.value), "what follows the host may be one"
    return f"{caught.value.code}: {caught.value}"


def test_a_file_is_fetched_once_and_not_again_while_it_is_the_same() -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head = handler.headers
        asked.append((handler.command, head["If-None-Match"], head["If-Modified-Since"]))
        if head["If-None-Match"] == '"1"' or head["If-Modified-Since"]:
            return send(handler, status=304, Content_Length="")
        assert (head["Host"].startswith("127.0.0.1:"), handler.path) == (True, "/feed.csv?token=secret")
        return send(handler, b"sku\n1\n", ETag='"1"', Last_Modified="Thu, 26 Nov 2026 01:00:00 GMT")

    with serving(answer) as url:
        content, found = got(url)
        digest = hashlib.sha256(content).digest()
        assert (content, found) == (b"sku\n1\n", Fetched(6, digest, '"1"', "Thu, 26 Nov 2026 01:00:00 GMT"))
        assert got(url, etag='"1"') == (b"", None)
        assert got(url, modified="Thu, 26 Nov 2026 01:00:00 GMT") == (b"", None)
        assert got(url, etag='"0"')[0] == content
    assert [command for command, *_ in asked] == ["GET", "HEAD", "GET", "GET", "GET", "HEAD"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1", "0.0.0.0", "0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "2130706433", "0x7f.1", "0177.0.0.1", "localhost",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]",
        "[ff02::1]", "[fec0::1]", "[2001:db8::1]",
    ],
)  # fmt: skip
def test_no_address_that_is_not_public_is_connected_to(address: str) -> None:
    found = refused(f"https://{address}:8443/secret", networks=(), http=False, seconds=2)
    assert found.startswith(("forbidden_address: ", "unreachable: ")) and "refused" not in found
    if address not in ("0177.0.0.1", "0x7f.1", "2130706433"):  # which a resolver need not know
        assert "has an address that is not public; PRESSWORK_FETCH_NETWORKS allows networks." in found


def test_an_address_counts_as_the_one_that_it_carries() -> None:
    for text in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::"):
        assert targets.is_public(targets.carried(ip_address(text))), text
    rules = (ip_network("10.1.0.0/16"),)
    target = Target.parse("https://shop.example/")
    targets.check(target, ["10.1.2.3", "8.8.8.8", "::ffff:10.1.2.3"], rules)
    for addresses in (["8.8.8.8", "10.2.0.1"], ["8.8.8.8", "fe80::1%eth0"], ["10.1.2.3", "nonsense"]):
        with pytest.raises(FetchFailed):
            targets.check(target, addresses, rules)
    with pytest.raises(FetchFailed, match="Port 22 is not one of 80, 443"):
        targets.check(Target.parse("https://shop.example:22/"), ["8.8.8.8"], ())


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/secret", "ftp://shop.example/secret", "file:///etc/secret", "gopher://shop.example/secret",
        "https://user:secret@shop.example/", "https://shop.example/#secret", "https://shop.example:0/secret",
        "https://shop.example:99999/secret", "https://shop.example./secret", "https:///secret", "https://[::1/secret",
        "https://[fe80::1%25eth0]/secret", "https://shop.example/\r\nHost: secret", "https://sh\u00f6p.example/secret",
        "https://shop.example\\@127.0.0.1/secret", "https://shop.example/" + "secret" * 400, "shop.example/secret", "",
    ],
)  # fmt: skip
def test_what_is_no_plain_https_address_is_refused(url: str) -> None:
    assert refused(url, http=False).startswith("invalid_url: The address must ")


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []
    answers = [["192.0.2.1", "127.0.0.1"], ["127.0.0.1"], ["10.9.9.9"]]
    real = socket.getaddrinfo

    def resolver(host: Any, port: Any, *args: Any, **how: Any) -> Any:
        if host != "shop.example":
            return real(host, port, *args, **how)
        resolved.append(host)
        found = answers[min(len(resolved), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    hosts: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers["Host"])
        send(handler, b"x")

    with serving(answer) as url:
        named = url.replace("127.0.0.1", "shop.example")
        assert refused(named).startswith("forbidden_address"), "one of two addresses is not allowed"
        assert hosts == []
        assert got(named)[0] == b"x"
        assert hosts[0].startswith("shop.example:") and len(resolved) == 2, "each attempt asks once"
        assert refused(named).startswith("forbidden_address"), "the name leads elsewhere now"


def test_each_redirect_is_checked_like_the_first_address() -> None:
    places = {"/feed.csv": "/next", "/next": "https://169.254.169.254/latest/secret"}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        if path == "/good":
            return send(handler, b"moved here")
        return send(handler, status=302, Location=places.get(path, "/feed.csv"))

    with serving(answer) as url:
        assert refused(url).startswith("forbidden_address: 169.254.169.254 has an address that is not public")
        places["/next"] = "/good"
        assert got(url)[0] == b"moved here"
        for location, said in (
            ("/feed.csv", "redirects more than 5 times"), ("file:///etc/secret", "must begin with https://"),
            ("", "redirects to nowhere"), ("https://u:secret@host/", "The address must be"),
            ("https://[secret", "redirects to what is no address"), ("//[::1/secret", "to what is no address"),
        ):  # fmt: skip
            places["/next"] = location
            assert said in refused(url)


def test_what_a_server_said_of_a_file_is_asked_of_that_address_alone() -> None:
    files, leads, asked = {"/a": b"one", "/b": b"two"}, ["/a"], list[tuple[str, str | None]]()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        said = handler.headers["If-None-Match"]
        if handler.command == "GET":
            asked.append((handler.path[:2], said))
        if handler.path not in files and leads:
            return send(handler, status=302, Location=leads[0])
        if said == '"1"':
            return send(handler, status=304)
        return send(handler, files.get(handler.path, b"three"), ETag='"1"')

    with serving(answer) as url:
        content, found = got(url)
        assert found is not None
        assert content == b"one" and found.etag.startswith('"1" of ')
        assert got(url, etag=found.etag) == (b"", None)
        leads[0] = "/b"
        assert got(url, etag=found.etag)[0] == b"two"
        leads.clear()
        assert got(url, etag=found.etag)[0] == b"three"
        leads.append("/a")
        assert got(url, etag='"1"')[0] == b"one"  # said of the first address
    paths = ["/f", "/a", "/f", "/a", "/f", "/b", "/f", "/f", "/a"]
    assert asked == list(zip(paths, [None, None, None, '"1"', None, None, None, '"1"', None], strict=True))


def test_what_is_too_large_too_slow_or_cut_short_is_given_up() -> None:
    bomb = gzip.compress(b"x" * 3_000_000)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    def drip_head(handler: BaseHTTPRequestHandler) -> None:
        while True:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: "[:1])
            time.sleep(0.02)

    cases: list[tuple[Answer, str]] = [
        (lambda handler: send(handler, b"", Content_Length="2000000"), "too_large: What 127.0.0.1 has there is larger"),
        (lambda handler: send(handler, b"x" * 2_000_000, Content_Length="", Connection="close"), "too_large"),
        (
            lambda handler: send(handler, bomb, Content_Encoding="gzip"),
            "too_large: What 127.0.0.1 has there unpacks to",
        ),
        (
            lambda handler: send(handler, b"not gzip", Content_Encoding="gzip"),
            "bad_answer: What 127.0.0.1 has there is",
        ),
        (lambda handler: send(handler, bomb[:-9], Content_Encoding="gzip"), "bad_answer|too_large"),
        (lambda handler: send(handler, b"x", Content_Encoding="br"), "bad_answer: 127.0.0.1 sends an encoding"),
        (
            lambda handler: (send(handler, b"x", Content_Length="9"), handler.connection.shutdown(socket.SHUT_RDWR)),
            "bad_answer|unreachable",
        ),
        (lambda handler: send(handler, b"", 404), "bad_status: 127.0.0.1 answers with status 404."),
        (
            lambda handler: handler.wfile.write(b"220 mail\r\n"),
            "unreachable: 127.0.0.1 cannot be read: its answer is no",
        ),
        (
            lambda handler: send(handler, b"", X="y" * 70_000),
            "unreachable: 127.0.0.1 cannot be read: its answer is not",
        ),
        (drip, "too_slow: 127.0.0.1 took too long to answer."),
        (drip_head, "too_slow"),
        (lambda _: time.sleep(0.6), "too_slow"),
    ]
    for answer, said in cases:
        with serving(answer) as url:
            found = refused(url, max_bytes=1_000_000, seconds=0.3 if said.startswith("too_slow") else 20)
            assert found.startswith(tuple(said.split("|"))), (found, said)
    with serving(
        lambda handler: send(handler, gzip.compress(b"a") + gzip.compress(b"b"), Content_Encoding="gzip")
    ) as url:
        assert got(url)[0] == b"ab"


def test_a_file_that_changes_while_it_is_read_is_read_again_and_then_given_up() -> None:
    number = [0]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "HEAD":
            number[0] += 1
        send(handler, b"version %d" % min(number[0], most), ETag=f'"{number[0]}"')

    most = 10
    with serving(answer) as url:
        assert refused(url).startswith("changed: What 127.0.0.1 has there changes while it is read.")
        most = 0  # many servers behind one name call the same bytes differently
        assert got(url)[0] == b"version 0"


def test_a_certificate_must_be_the_hosts(tmp_path: Path) -> None:
    made = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=shop -days 2"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {made}.key -out {made}"
    subprocess.run(command.split(), check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made, f"{made}.key")
    trusting = ssl.create_default_context(cafile=str(made))
    with serving(lambda handler: send(handler, b"x"), server) as url:
        assert "its certificate is not accepted" in refused(url, http=False)
        assert got(url, http=False, tls=trusting)[0] == b"x"

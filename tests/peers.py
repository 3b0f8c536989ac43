"""Peers with bad habits, on loopback: one that hangs or drips, and a proxy that answers for an S3 server."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

HANGS = ("connect", "head", "dripping head", "body", "dripping body", "closed after 100 Continue")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n"


@contextmanager
def hanging(stage: str, pause: float = 0.05) -> Iterator[str]:
    """The address of an HTTP server that hangs at that stage. A dripping one ends after 100 pauses, successfully."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        callers: list[socket.socket] = []
        if stage == "connect":  # its backlog is full, so it answers no SYN
            for _ in range(3):
                callers.append(socket.socket())
                callers[-1].setblocking(False)
                callers[-1].connect_ex(address)
        else:
            threading.Thread(target=_serve, args=(server, stage, pause, ended, callers), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            ended.set()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            for caller in callers:
                caller.close()


def _serve(
    server: socket.socket, stage: str, pause: float, ended: threading.Event, callers: list[socket.socket]
) -> None:
    with suppress(OSError):
        while True:
            caller, _ = server.accept()
            callers.append(caller)
            threading.Thread(target=_hang, args=(caller, stage, pause, ended), daemon=True).start()


def _hang(caller: socket.socket, stage: str, pause: float, ended: threading.Event) -> None:
    with suppress(OSError):
        caller.recv(1 << 16)
        if stage == "closed after 100 Continue":
            caller.sendall(b"HTTP/1.1 100 Continue\r\n")
            caller.shutdown(socket.SHUT_RDWR)
        elif stage == "dripping head":
            _drip(caller, _HEAD + b"\r\n" + b"x" * 100, pause, ended)
        elif stage == "body":
            caller.sendall(_HEAD + b"\r\n")
        elif stage == "dripping body":
            caller.sendall(_HEAD + b"\r\n")
            _drip(caller, b"x" * 100, pause, ended)
        while not ended.is_set() and caller.recv(1 << 16):
            pass


def _drip(caller: socket.socket, data: bytes, pause: float, ended: threading.Event) -> None:
    for byte in data:
        if ended.is_set():
            return
        caller.sendall(bytes([byte]))
        time.sleep(pause)


class S3Proxy:
    """Passes requests on to an S3 server, unless `rule(method, path, headers)` gives an answer: a status, a code, and
    more XML. `asked` holds all requests: method, path, body. With a `certificate`, a file that holds its key too, it
    speaks TLS."""

    def __init__(self, target: str, rule: Callable[[str, str, Any], Any], certificate: Path | None = None) -> None:
        place, outer = urlsplit(target).netloc, self
        self.rule = rule
        self.asked: list[tuple[str, str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, body))
                found = outer.rule(self.command, self.path, self.headers)
                if found is not None:
                    status, code, more = found
                    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>"
                    self.send(status, {"Content-Type": "application/xml"}, text.encode())
                    return
                headers = dict(self.headers.items())
                server = http.client.HTTPConnection(place, timeout=10)
                server.request(self.command, self.path, body, headers)
                reply = server.getresponse()
                kept = {name: value for name, value in reply.getheaders() if name not in _HOP}
                self.send(reply.status, kept, reply.read())
                server.close()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815  http.server's names

            def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


_HOP = {"Connection", "Transfer-Encoding", "Keep-Alive"}

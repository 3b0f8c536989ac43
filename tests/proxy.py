"""A TCP proxy on loopback that can be cut and mended, answer in the server's place, or be slow: how tests make a server
unreachable or odd for one client, and how benchmarks put a store at the distance at which stores are."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards to (host, port); what comes back is `delay` seconds late. While cut, connections are refused at once
    and open ones are reset. While it hangs, it takes what is sent and passes nothing on. While `answer` is set, that is
    the answer to whatever a client sends. A request of HTTP that begins with `refused` is answered with 507 instead of
    forwarded."""

    def __init__(self, host: str, port: int, delay: float = 0.0, refused: bytes | None = None) -> None:
        self._target = (host, port)
        self._delay = delay
        self._refused = refused
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()
        self.answer = b""
        self.accepted = 0  # connections
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._guard:
            self._cut = True
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        self._flows.clear()

    def mend(self) -> None:
        self._cut = False
        self._flows.set()

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            if self._cut:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._guard:
                self._open |= {client, server}
            for one, other, delay in ((client, server, 0.0), (server, client, self._delay)):
                threading.Thread(target=self._pump, args=(one, other, delay, one is client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, delay: float, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._refused is not None and data.startswith(self._refused):
                    source.sendall(
                        b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                    break
                time.sleep(delay)
                self._flows.wait()
                if asks and self.answer:
                    source.sendall(self.answer)
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._guard:
            self._open -= {source, sink}

"""No message reaches this machine, its network or a cloud's metadata: a canary listens here, and nobody connects."""

import socket
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from services.core.fetching.errors import FetchFailed
from services.core.fetching.post import post
from services.core.model.errors import InvalidSubmission
from services.core.webhooks import endpoints
from tests import receiving
from tests.receiving import answer, derive, happen, hurry, listed, make, runner, tries

HOSTILE = (
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "localhost", "0.0.0.0", "0", "2130706433", "0x7f.1",
    "0x7f000001", "0177.0.0.1", "017700000001", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
    "192.168.0.1", "192.168.255.255", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200",
    "100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "[::1]", "[::]",
    "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[2002:a00:1::1]", "[2002:a9fe:a9fe::]", "[2001:0:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[fe80::1]", "[febf::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]",
    "[fdff::1]", "[ff02::1]", "[ff05::2]", "[2001:db8::1]", "[100::1]", "[3fff::1]", "[5f00::1]",
)  # fmt: skip
MALFORMED = (
    "ftp://hooks.example/", "gopher://hooks.example/", "file:///etc/passwd", "http://hooks.example/", "hooks.example",
    "https://user:pass@hooks.example/", "https://hooks.example/#part", "https://hooks.example/\r\nX: 1",
    "https://hooks.example./", "https://hööks.example/", "https://hooks.example:0/", "https://hooks.example:99999/",
    "https:///hook", "https://[fe80::1%25lo]/", "https://hooks.example\\@127.0.0.1/", f"https://a.example/{'x' * 3000}",
    "https://hooks.example:22/", "https://hooks.example:25/", f"https://{'a' * 10_000}.example/",
    "https://169.254.169.254/latest/meta-data", "javascript:alert(1)", "",
)  # fmt: skip


class Canary:
    """Listens on every address of loopback, and counts who connects."""

    def __init__(self) -> None:
        self.connections = 0
        self._sockets = [socket.create_server(("0.0.0.0", 0))]
        self.port = self._sockets[0].getsockname()[1]
        if socket.has_ipv6:
            try:
                self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
            except OSError:  # this machine has no IPv6
                pass
        for listening in self._sockets:
            threading.Thread(target=self._count, args=(listening,), daemon=True).start()

    def _count(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        for listening in self._sockets:
            listening.close()


@pytest.fixture
def canary():
    found = Canary()
    yield found
    found.close()


def test_the_canary_sings(canary):
    with socket.create_connection(("127.0.0.1", canary.port)):
        pass
    end = time.monotonic() + 5
    while not canary.connections and time.monotonic() < end:
        time.sleep(0.01)
    assert canary.connections == 1


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_sixty_hostile_addresses_reach_nothing(settings, canary, scheme):
    assert len(HOSTILE) >= 60
    settings = replace(settings, webhook_http=True)
    rules = replace(endpoints.rules(settings), seconds=1.0)
    for host in HOSTILE:
        url = f"{scheme}://{host}:{canary.port}/hook"
        with pytest.raises(FetchFailed) as caught:
            post(url, b"{}", {}, rules)
        assert caught.value.code in ("forbidden_address", "unreachable", "invalid_url"), (url, str(caught.value))
        assert "refused" not in str(caught.value), f"somebody was asked: {url}"
        if caught.value.code != "unreachable":  # a name that does not resolve here is checked when it is used
            with pytest.raises(InvalidSubmission, match="url is refused"):
                endpoints.check_url(settings, url)
    time.sleep(0.1)
    assert canary.connections == 0


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_no_address_for_a_webhook_is_refused_with_one_sentence(settings, url):
    with pytest.raises(InvalidSubmission) as caught:
        endpoints.check_url(settings, url)
    [problem] = caught.value.problems
    assert problem.param == "url" and problem.message.startswith("url is refused: ") and problem.message.endswith(".")


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000/hook", "https://127.0.0.1:3000/hook", "https://10.1.2.3/"])
def test_who_develops_is_told_how_messages_reach_their_machine(settings, url):
    with pytest.raises(InvalidSubmission) as caught:
        endpoints.check_url(settings, url)
    [problem] = caught.value.problems
    assert "`presswork webhooks listen` brings messages to" in problem.message


def test_this_servers_own_address_is_refused(settings):
    own = replace(settings, public_url="https://presswork.example")
    with pytest.raises(InvalidSubmission, match="this server's own"):
        endpoints.check_url(own, "https://PRESSWORK.example/v1/jobs")


@pytest.fixture
def named(monkeypatch):
    """A resolver for the name hooks.example that answers differently each time, the last answer from then on."""
    real = socket.getaddrinfo
    answers: list[list[str]] = []
    asked: list[str] = []

    def resolver(host: Any, port: Any, *args: Any, **how: Any) -> Any:
        if host != "hooks.example":
            return real(host, port, *args, **how)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return answers, asked


@pytest.fixture
def connected(monkeypatch):
    """The addresses to which somebody connects. Those that are not of this machine cannot be reached."""
    found: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0].startswith("93."):
            found.append(address[0])
            raise OSError(113, "No route to host")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return found


def test_a_name_that_leads_here_a_moment_later_reaches_the_address_that_was_checked(settings, canary, named, connected):
    answers, asked = named
    answers += [["93.184.216.34"], ["127.0.0.1"]]
    with pytest.raises(FetchFailed, match="no route to host"):
        post(f"https://hooks.example:{canary.port}/", b"{}", {}, endpoints.rules(settings))
    assert connected == ["93.184.216.34"] and len(asked) == 1
    with pytest.raises(FetchFailed, match="not public"):
        post(f"https://hooks.example:{canary.port}/", b"{}", {}, endpoints.rules(settings))
    assert canary.connections == 0


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "10.9.9.9"])
def test_a_name_of_a_clouds_metadata_or_of_this_network_is_refused_when_the_webhook_is_made(
    settings, canary, named, connected, address
):
    answers, _ = named
    url = f"https://hooks.example:{canary.port}/latest/meta-data"
    for found in ([address], ["93.184.216.34", address]):
        answers[:] = [found]
        with pytest.raises(InvalidSubmission, match=r"url is refused: .* not public"):
            endpoints.check_url(settings, url)
        with pytest.raises(FetchFailed, match="not public"):
            post(url, b"{}", {}, endpoints.rules(settings))
    assert canary.connections == 0 and not connected


def test_a_name_that_was_public_when_the_webhook_was_made_is_checked_at_each_try(
    database, settings, canary, named, connected
):
    answers, _ = named
    answers += [["93.184.216.34"], ["93.184.216.34", "127.0.0.1"], ["127.0.0.1"]]
    url = f"https://hooks.example:{canary.port}/"
    endpoints.check_url(settings, url)
    endpoint, _ = make(database, settings, url)
    happen(database)
    derive(database)
    for number in (1, 2):
        runner(database, settings).run_once()
        [delivery] = listed(database, endpoint)
        assert len(tries(database, delivery)) == number and delivery.status is None
        assert "has an address that is not public; PRESSWORK_WEBHOOK_NETWORKS" in delivery.error
        hurry(database)
    assert canary.connections == 0 and not connected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_leads_nowhere(database, settings, canary, status):
    settings = receiving.to_this_machine(settings)
    elsewhere = f"http://127.0.0.1:{canary.port}/"
    with receiving.receiving(lambda handler: answer(handler, status, Location=elsewhere)) as receiver:
        endpoint, _ = make(database, settings, receiver.url)
        happen(database)
        derive(database)
        runner(database, settings).run_once()
        [delivery] = listed(database, endpoint)
    assert (delivery.state, delivery.status) == ("pending", status) and "not followed" in delivery.error
    assert canary.connections == 0


def test_an_answer_is_read_for_four_kilobytes_and_ten_seconds_at_most(settings):
    settings = receiving.to_this_machine(settings)
    sent = [0]

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10 << 30))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
                sent[0] += 65536
        except OSError:
            pass

    def dripping(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x")
                time.sleep(0.1)
        except OSError:
            pass

    def headers(handler):
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                handler.wfile.write(b"X-A: " + b"y" * 60000 + b"\r\n")
        except OSError:
            pass

    rules = replace(endpoints.rules(settings), seconds=1.0)
    assert endpoints.rules(settings).seconds == 10.0 and endpoints.rules(settings).max_bytes == 4096
    for reply, understood in ((endless, True), (dripping, True), (headers, False), (lambda _: time.sleep(3), False)):
        with receiving.receiving(reply) as receiver:
            began = time.monotonic()
            if understood:
                assert post(receiver.url, b"{}", {}, rules).status == 200
            else:
                with pytest.raises(FetchFailed):
                    post(receiver.url, b"{}", {}, rules)
            assert time.monotonic() - began < 3
    assert sent[0] < 64 << 20, "most of ten gigabytes was never sent"

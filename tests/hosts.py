"""Hosts of one test: network namespaces, and a network between them that is slow, loses packets and can be cut.

Each host has one interface, a TUN device. What its kernel sends there a thread of this process reads, holds for the
delay of that pair of hosts, and hands to the other host's kernel, unless it is lost or the two are cut off. So TCP at
both ends is the kernel's own, a cut is as silent as that of a cable, and the kernel need not know `netem`. The
addresses exist in these namespaces only: nothing there reaches the machine's network, or is reached from it.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
TUN = Path("/dev/net/tun")
_NETWORK, _MTU = "10.213.77", 9000
_CLONE_NEWNET, _CLONE_NEWUTS = 0x40000000, 0x04000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why there can be no hosts here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not TUN.exists():
        return f"there is no {TUN}"
    name = f"presswork-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no `ip` (apt-get install iproute2)"
    if made.returncode != 0:
        return f"`ip netns add` fails: {made.stderr.strip()[:200]}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return ""


class Host:
    """A namespace with an address and a name. What `run` starts is on this host, and so is what its threads open."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self._space = f"presswork-{os.getpid()}-{name}"
        _ip("netns", "add", self._space)
        self._thread = ThreadPoolExecutor(1, name, initializer=self.enter)  # what it starts dies with it, so it lives
        self.wire = self.run(self._plug)

    def run(self, verb: Callable[..., T], *arguments: Any) -> T:
        """Calls it on this host."""
        return self._thread.submit(verb, *arguments).result()

    def enter(self) -> None:
        """From now on the calling thread is on this host."""
        with Path(f"/run/netns/{self._space}").open() as space:
            _enter(space.fileno())

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.wire)
        _ip("netns", "delete", self._space)

    def _plug(self) -> int:
        if _LIBC.unshare(_CLONE_NEWUTS) != 0:  # of this thread, and of what it starts
            raise OSError(ctypes.get_errno(), "unshare failed")
        socket.sethostname(self.name)
        wire = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(wire, _TUNSETIFF, struct.pack("16sH14x", b"wire", _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", "lo", "up")
        _ip("address", "add", f"{self.address}/24", "dev", "wire")
        _ip("link", "set", "wire", "mtu", str(_MTU), "up")
        return wire


class Network:
    """The hosts and what is between them. `delay` seconds each way; `loss`: the share of packets that are lost."""

    def __init__(self, names: list[str], *, delay: float, loss: float, chance: random.Random) -> None:
        self.hosts = {name: Host(name, number) for number, name in enumerate(names, 1)}
        self.carried = self.lost = self.refused = 0  # packets
        self._delay, self._loss, self._chance = delay, loss, chance
        self._slow: dict[frozenset[str], float] = {}
        self._cut: set[frozenset[str]] = set()
        self._going = True
        self._thread = threading.Thread(target=self._carry, name="network")
        self._thread.start()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def slow(self, one: str, other: str, delay: float) -> None:
        self._slow[frozenset((one, other))] = delay

    def cut(self, one: str, other: str) -> None:
        """From now on no packet passes between the two, and neither is told."""
        self._cut.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))

    def unplug(self, name: str) -> None:
        """Cuts a host off from all others."""
        for other in self.hosts.keys() - {name}:
            self.cut(name, other)

    def close(self) -> None:
        self._going = False
        self._thread.join()
        for host in self.hosts.values():
            host.close()

    def _carry(self) -> None:
        names = {int(host.address.rpartition(".")[2]): name for name, host in self.hosts.items()}
        under_way: list[tuple[float, int, int, bytes]] = []
        numbers = itertools.count()
        with selectors.DefaultSelector() as ready:
            for name, host in self.hosts.items():
                ready.register(host.wire, selectors.EVENT_READ, name)
            while self._going:
                patience = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else 0.05
                for key, _ in ready.select(min(patience, 0.05)):
                    with suppress(BlockingIOError):
                        while True:
                            packet = os.read(key.fd, 65536)
                            due = self._due(key.data, names, packet)
                            if due is not None:
                                wire = self.hosts[names[packet[19]]].wire
                                heapq.heappush(under_way, (due, next(numbers), wire, packet))
                now = time.monotonic()
                while under_way and under_way[0][0] <= now:
                    _, _, wire, packet = heapq.heappop(under_way)
                    with suppress(OSError):  # its queue is full: a loss like any other
                        os.write(wire, packet)

    def _due(self, source: str, names: dict[int, str], packet: bytes) -> float | None:
        """When the packet arrives. None: never."""
        if packet[0] >> 4 != 4 or (target := names.get(packet[19])) is None:  # of IPv4, byte 19 ends the target
            return None
        pair = frozenset((source, target))
        if pair in self._cut:
            self.refused += 1
            return None
        if self._chance.random() < self._loss:
            self.lost += 1
            return None
        self.carried += 1
        return time.monotonic() + self._slow.get(pair, self._delay)


@contextmanager
def visiting(host: Host) -> Iterator[None]:
    """Within, the calling thread is on that host, and so are the threads that it starts."""
    with Path("/proc/thread-self/ns/net").open() as home:
        host.enter()
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(space: int) -> None:
    if _LIBC.setns(space, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

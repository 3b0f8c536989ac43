"""The addresses that users give us to connect to: which URLs are accepted, and which IP addresses they may lead to.

Only public addresses are, unless a setting allows a network. An address that carries another one (IPv4 in IPv6, 6to4,
NAT64, Teredo) counts as what it carries.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Self
from urllib.parse import urljoin, urlsplit

from services.core.fetching.errors import FetchFailed
from services.core.settings import Network

LONGEST_URL = 2_048
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,251}[a-z0-9])?", re.ASCII | re.IGNORECASE)
_NAT64 = ip_network("64:ff9b::/96")
# What `is_global` lets pass in some release of Python, or is global only on paper.
_NEVER = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23",
        "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL, in parts. `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, *, http: bool = False) -> Self:
        """`http`: it may be unencrypted. Raises FetchFailed."""
        rule = "an address such as https://shop.example/feed.csv, in ASCII and without a password or a fragment"
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise FetchFailed("invalid_url", f"The address must be {rule}.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise FetchFailed("invalid_url", f"The address must be {rule}.") from None
        if parts.scheme not in ("https", *(["http"] if http else [])):
            raise FetchFailed("invalid_url", f"The address must begin with https://{' or http://' if http else ''}.")
        host = parts.hostname or ""
        is_literal = parts.netloc.startswith("[")
        if not (is_literal and _is_address(host)) and not _HOST.fullmatch(host):
            raise FetchFailed("invalid_url", f"The address must be {rule}.")
        if "@" in parts.netloc or "#" in url or port == 0:
            raise FetchFailed("invalid_url", f"The address must be {rule}.")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, host, port or {"https": 443, "http": 80}[parts.scheme], path)

    @property
    def authority(self) -> str:
        """Host and port as the header Host has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    def redirected(self, location: str, *, http: bool) -> "Target":
        """Where a redirect leads, checked like the first address. Raises FetchFailed."""
        try:
            url = urljoin(self.url, location)
        except ValueError:
            raise FetchFailed("bad_answer", f"{self.host} redirects to what is no address.") from None
        return Target.parse(url, http=http)


def check(
    target: Target, addresses: Sequence[str], allowed: Sequence[Network], setting: str = "PRESSWORK_FETCH_NETWORKS"
) -> None:
    """Raises FetchFailed unless every address that the host's name has may be connected to: of two, an attacker
    chooses the one that is used. `setting` names what `allowed` comes from."""
    for text in addresses:
        try:
            address = carried(ip_address(text.partition("%")[0]))
        except ValueError:
            address = None
        if address is not None and any(address in network for network in allowed):
            continue
        if address is None or "%" in text or not is_public(address):
            raise FetchFailed(
                "forbidden_address",
                f"{target.host} has an address that is not public; {setting} allows networks.",
            )
        check_port(target)


def check_port(target: Target) -> None:
    """Raises FetchFailed for a port at which other services than HTTP listen. A network that is allowed has any."""
    if target.port < 1024 and target.port not in (80, 443):
        raise FetchFailed("forbidden_address", f"Port {target.port} is not one of 80, 443 and those from 1024.")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(address.version == network.version and address in network for network in _NEVER)
    )


def carried(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    return inner or address


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host

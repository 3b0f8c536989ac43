"""Where a request came from and by which address it reached us: what links are made with, and which hosts are served.

A client may send any Host, so a name from there becomes part of a link only if it is known to be ours. What proxies
say about a request (X-Forwarded-For, -Proto and -Host) counts only if the connection comes from one of
PRESSWORK_TRUSTED_PROXIES; so does their X-Request-Id.
"""

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from services.core.settings import Network, Settings

_AUTHORITY = re.compile(
    r"(?P<name>[a-z0-9](?:[a-z0-9._-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OUR_NAMES = _LOOPBACK | {socket.gethostname().lower()}

Scope = Any  # an ASGI scope


def believe_proxies(settings: Settings, scope: Scope) -> bool:
    """If the connection comes from a trusted proxy, takes the client, the scheme and the host that it names. Returns
    whether it does."""
    client = scope.get("client")
    if not settings.trusted_proxies or client is None or not is_trusted(client[0], settings.trusted_proxies):
        return False
    said = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"x-forwarded-")}
    hops = [hop.strip() for hop in said.get(b"x-forwarded-for", "").split(",") if hop.strip()]
    stranger = next((hop for hop in reversed(hops) if not is_trusted(hop, settings.trusted_proxies)), None)
    if stranger is not None and _is_address(stranger):
        scope["client"] = (stranger, 0)
    scheme = _last(said.get(b"x-forwarded-proto", "")).lower()
    if scheme in ("http", "https"):
        scope["scheme"] = scheme
    host = _last(said.get(b"x-forwarded-host", ""))
    if host:
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [(b"host", host.encode("latin-1")), *others]
    return True


def is_trusted(address: str, proxies: Iterable[Network]) -> bool:
    """Whether the address belongs to one of these proxies."""
    return _is_address(address) and any(ip_address(address) in network for network in proxies)


def is_served(settings: Settings, scope: Scope) -> bool:
    """Whether the request's host is one of PRESSWORK_ALLOWED_HOSTS and of PRESSWORK_PUBLIC_URL; without the first,
    every host is."""
    if not settings.allowed_hosts:
        return True
    given = _authority(scope)
    return given is not None and _is_listed(given, settings)


def base_url(settings: Settings, scope: Scope) -> str:
    """The address in front of `/v1`: PRESSWORK_PUBLIC_URL; or else the one that this request was sent to, if it names
    an allowed host or this machine; or else the address that the connection reached."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    given = _authority(scope)
    if given is not None and (_is_listed(given, settings) if settings.allowed_hosts else _is_ours(given, scope)):
        return f"{scope['scheme']}://{given[0]}"
    name, port = scope.get("server") or (settings.host, settings.port)
    return f"{scope['scheme']}://{f'[{name}]' if ':' in name else name}:{port}"


def _authority(scope: Scope) -> tuple[str, str] | None:
    """The Host header in lower case, and its name without the port; None unless it is there once and well formed."""
    given = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    found = _AUTHORITY.fullmatch(given[0]) if len(given) == 1 else None
    return None if found is None else (found[0], found["name"])


def _is_listed(given: tuple[str, str], settings: Settings) -> bool:
    """Whether the list has this host, with its port or without any; `*.example.org` stands for every name below."""
    listed = settings.allowed_hosts
    if any(word in listed for word in given):
        return True
    _, name = given
    return any(entry.startswith("*.") and name.endswith(entry[1:]) for entry in listed)


def _is_ours(given: tuple[str, str], scope: Scope) -> bool:
    server = (scope.get("server") or ("", 0))[0]
    return given[1] in _OUR_NAMES or given[1] in (server, f"[{server}]")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _last(values: str) -> str:
    """What the nearest proxy added to such a list."""
    return values.rpartition(",")[2].strip()

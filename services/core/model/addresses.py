"""The addresses of servers, parsed by one strict rule, so that no library reads one differently or shows a part of it.

Refusals are ValueErrors whose sentence holds nothing of the address: any part of a misread one may be its password.
"""

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

ENCODING = (
    "its user name and password must be percent-encoded (# is %23, / is %2F, ? is %3F, @ is %40, % is %25), "
    "without spaces"
)
_STRAY_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_CERT_REQS = ("required", "optional", "none")


def check(address: str, *schemes: str) -> None:
    """Raises ValueError, with what would do, if it is not an address of one of these schemes."""
    parts = _split(address, *schemes)
    if parts.scheme in ("http", "https"):
        if "@" in parts.netloc:
            raise ValueError("it must not hold a user name or a password")
        if not parts.hostname or parts.query:
            raise ValueError(f"it must be of the form {parts.scheme}://host:port")
    elif parts.scheme in ("redis", "rediss"):
        RedisAddress.parse(address)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, and how to log in. Printed, it is host and port."""

    host: str
    port: int
    db: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    tls: dict[str, str | bool] | None = field(repr=False)  # redis-py's options; None without TLS

    @classmethod
    def parse(cls, address: str) -> Self:
        """Raises ValueError, with what would do."""
        parts = _split(address, "redis", "rediss")
        path = parts.path.removeprefix("/") or "0"
        if not (path.isascii() and path.isdigit()):
            raise ValueError("after the host there can only be the number of a database, such as /0")
        return cls(
            parts.hostname or "127.0.0.1",
            parts.port or 6379,
            int(path),
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            _tls(parts),
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _split(address: str, *schemes: str) -> SplitResult:
    beginnings = tuple(f"{scheme}://" for scheme in schemes)
    if not address.startswith(beginnings):
        raise ValueError(f"it must begin with {either(*beginnings)}")
    try:
        parts = urlsplit(address)
    except ValueError:  # it names the host that it saw, which may be a part of the password
        raise ValueError(ENCODING) from None
    rest = address.partition("://")[2]
    outside = rest.removeprefix(parts.netloc)
    if "#" in rest or "@" in outside or parts.netloc.count("@") > 1 or not _is_plain(rest):
        raise ValueError(ENCODING)
    try:
        known = parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"its port must be a number from 1 to 65535, and {ENCODING}")
    return parts


def _is_plain(text: str) -> bool:
    """No spaces and no control characters, which the parser would drop in silence, and no stray percent sign."""
    return text.isprintable() and " " not in text and not _STRAY_PERCENT.search(text)


def _tls(parts: SplitResult) -> dict[str, str | bool] | None:
    options: dict[str, str | bool] = dict(parse_qsl(parts.query, keep_blank_values=True))
    if options and (parts.scheme == "redis" or not set(options) <= set(_TLS_OPTIONS)):
        raise ValueError(f"after the question mark there can only be, with rediss://, {either(*_TLS_OPTIONS)}")
    if parts.scheme == "redis":
        return None
    if options.setdefault("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise ValueError(f"its ssl_cert_reqs can be {either(*_CERT_REQS)}")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = str(options["ssl_check_hostname"]).lower() in ("true", "1", "yes")
    return options


def either(*words: str) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]

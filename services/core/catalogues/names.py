"""The last part of a public link: an item's id where every client passes it on unharmed, else its base64url.

An id is data, never a path: "..", "a/b" and "%2e" have a name without dots, slashes and escapes. Each id has one name.
"""

import base64
import binascii
import re

_ENCODED = "~"  # which no plain name has
_PLAIN = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]{0,198}[A-Za-z0-9_-])?", re.ASCII)


def of_item(item: str) -> str:
    """The id itself if it has up to 200 of A-Z a-z 0-9 _ - and no dot at either end; else `~` and base64url of it."""
    if _PLAIN.fullmatch(item):
        return item
    return _ENCODED + base64.urlsafe_b64encode(item.encode()).decode().rstrip("=")


def item(name: str) -> str | None:
    """The inverse of `of_item`; None: no item has that name."""
    if not name.startswith(_ENCODED):
        return name if _PLAIN.fullmatch(name) else None
    given = name.removeprefix(_ENCODED)
    try:
        found = base64.urlsafe_b64decode(given.encode("ascii") + b"=" * (-len(given) % 4)).decode()
    except (UnicodeError, binascii.Error):
        return None
    return found if found and "\0" not in found and of_item(found) == name else None

"""Text of others on a terminal: what could move the cursor, change colours or reverse the reading order is taken out.

Everything that a command prints passes through here, since servers, logs and files may hold such characters.
"""

import json
import re

# Control characters but tab and newline, marks of the reading order, line separators, and halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without such characters."""
    return _UNSAFE.sub("", text)


def json_line(value: object) -> str:
    """The value as JSON, in which such characters are escapes; a reader gets the same value."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))

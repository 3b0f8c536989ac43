"""Fills the variables of a compose file in, as Docker Compose does. podman-compose cannot fill one inside another."""

import re
from collections.abc import Mapping
from typing import Any

REQUIRED = re.compile(r"\$\{(\w+):\?")
_VARIABLE = re.compile(r"\$\{(\w+)(:?)([-?])([^{}]*)\}")  # of variables in variables, the inner one


def filled(value: Any, given: Mapping[str, str], dollar: str = "$") -> Any:
    """The value with defaults for what is not given, and `dollar` for `$$`. Raises KeyError if something must be given
    and is not."""
    if isinstance(value, dict):
        return {key: filled(part, given, dollar) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, given, dollar) for part in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, colon, kind, text = found.groups()
        is_given = bool(given.get(name)) if colon else name in given
        if not is_given and kind == "?":
            raise KeyError(f"{name}: {text}")
        return given[name] if is_given else text

    while _VARIABLE.search(value):
        value = _VARIABLE.sub(fill, value)
    return value.replace("$$", dollar)

"""A file of catalogues, in TOML, YAML or JSON: each by its name under `catalogue`."""

import tomllib
from pathlib import PurePath
from typing import Any

from services.core import extras
from services.core.model import strict_json
from services.core.model.errors import PressworkError

LARGEST = 1 << 20  # bytes


class BadFile(PressworkError):
    """The file holds no catalogues."""


def read(name: str, content: bytes) -> dict[str, Any]:
    """The definitions, unchecked, by the catalogues' names. The ending of the file's name says what it is.
    Raises BadFile."""
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": strict_json.loads}
    reader = readers.get(PurePath(name).suffix.lower())
    if reader is None:
        raise BadFile(f"{name} has none of the known endings: {', '.join(readers)}.")
    if len(content) > LARGEST:
        raise BadFile(f"{name} has {len(content):,} bytes; {LARGEST:,} are allowed.")
    try:
        found = reader(content.removeprefix(strict_json.BYTE_ORDER_MARK))
    except UnicodeDecodeError as error:
        raise BadFile(f"{name} is not UTF-8: byte {error.start} is invalid.") from None
    except (tomllib.TOMLDecodeError, strict_json.BadJson) as error:
        raise BadFile(f"{name}: {str(error).rstrip('.')}.") from None
    given = found.get("catalogue") if isinstance(found, dict) and set(found) == {"catalogue"} else None
    if not isinstance(given, dict) or not given or not all(isinstance(key, str) for key in given):
        raise BadFile(f"{name} must hold one or more catalogues, each by its name under `catalogue`, and nothing else.")
    return given


def _toml(content: bytes) -> Any:
    return tomllib.loads(content.decode())


def _yaml(content: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise extras.MissingExtra(extras.sentence("cli", what="A file in YAML")) from None

    class Loader(yaml.SafeLoader):
        """Without aliases, of which a few lines make gigabytes, and without keys that stand twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(problem="an alias is not allowed here", problem_mark=mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep)
            if len(found) != len(node.value):
                raise yaml.MarkedYAMLError(problem="a key stands twice, or << is used", problem_mark=node.start_mark)
            return found

    try:
        return yaml.load(content, Loader)  # noqa: S506  it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadFile(f"It is not the YAML that is read here: {error.problem}{where}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFile(f"It is not valid YAML: {error}."[:300]) from None

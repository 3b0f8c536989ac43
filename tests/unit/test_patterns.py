"""The regular expressions that read what users write take time in proportion to its length."""

import ast
import importlib
import itertools
import re
import re._parser as parser  # type: ignore[import-not-found]
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHORT, LONG = 2_000, 40_000
WHOLE = {"fullmatch", "match"}
PLACES = ("services/api", "services/core", "services/dashboard")


def characters(parsed: Any) -> Iterator[str]:
    """A character or two of everything that a pattern takes."""
    for operation, value in parsed:
        name = str(operation)
        if name in ("LITERAL", "NOT_LITERAL"):
            yield chr(value)
        elif name == "IN":
            for kind, inner in value:
                if str(kind) == "LITERAL":
                    yield chr(inner)
                elif str(kind) == "RANGE":
                    yield chr(inner[0])
                elif str(kind) == "CATEGORY":
                    yield {"CATEGORY_SPACE": " ", "CATEGORY_DIGIT": "0"}.get(str(inner), "a")
        elif name == "ANY":
            yield "a"
        else:
            for part in value if isinstance(value, (tuple, list)) else (value,):
                for branch in part if isinstance(part, list) else (part,):
                    if isinstance(branch, parser.SubPattern):
                        yield from characters(branch)


def patterns() -> dict[str, tuple[re.Pattern[Any], bool]]:
    """Every pattern of a module, by its place, and whether it is only ever matched against a whole text."""
    found: dict[str, tuple[re.Pattern[Any], bool]] = {}
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "re.compile(" not in source:
                continue
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            uses = [
                (node.value.id, node.attr)
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            ]
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern) and re.search(rf"\b{name}\b[^\n]*= ", source):
                    methods = {attribute for used, attribute in uses if used == name} - {"pattern"}
                    found[f"{path.relative_to(ROOT)}:{name}"] = value, methods <= WHOLE
    return found


PATTERNS = patterns()


def seconds(pattern: re.Pattern[Any], text: str | bytes, *, whole: bool) -> float:
    taken = []
    for _ in range(3):
        began = time.thread_time()  # other programs may be busy
        pattern.fullmatch(text) if whole else sum(1 for _ in pattern.finditer(text))
        taken.append(time.thread_time() - began)
    return min(taken)


def text_of(pattern: re.Pattern[Any], one: str, length: int) -> str | bytes:
    """That many characters of what a pattern takes, and in the end what it does not."""
    text = one * (length // len(one)) + "\x00!"
    return text if isinstance(pattern.pattern, str) else text.encode("latin-1")


@pytest.fixture
def impatient() -> Iterator[None]:
    """A pattern that would take for ever is a failure, and no test that hangs."""

    def give_up(*_: object) -> None:
        raise TimeoutError("this pattern takes too long")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", PATTERNS)
def test_a_pattern_takes_time_in_proportion_to_the_text(place: str) -> None:
    pattern, whole = PATTERNS[place]
    given = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    seen = list(dict.fromkeys(characters(parser.parse(given, pattern.flags))))[:8]
    for one in [*seen, *(first + second for first, second in itertools.permutations(seen[:5], 2))]:
        slow = seconds(pattern, text_of(pattern, one, LONG), whole=whole)
        # Twenty times the text: twenty times the time, and 400 times where each character begins anew.
        assert slow < 0.02 or slow < 100 * seconds(pattern, text_of(pattern, one, SHORT), whole=whole), one


def test_the_patterns_are_found() -> None:
    assert len(PATTERNS) > 40
    evil = re.compile(r"(a+)+b|c+d")
    assert seconds(evil, "c" * LONG, whole=False) > 100 * seconds(evil, "c" * SHORT, whole=False)

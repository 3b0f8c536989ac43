"""Small faults in the SQL that a module's texts hold: a guard dropped, a comparison turned round, a lock not taken.

Keywords are told from names by their capitals, as our statements are written. A statement that a fault makes invalid
dies at its first use and costs little.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.mutation.in_python import Edit, Places

_IS_SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE \w+|DELETE FROM|WHERE|FROM|expires_at <)\b")
_TOKEN = re.compile(
    r"""(?P<string>'(?:[^']|'')*')|(?P<hole>\{[^{}]*\})|(?P<cast>::)|(?P<param>:[a-z_0-9]+)
    |(?P<op>=>|<=|>=|<>|\|\||[=<>+\-*/])|(?P<number>\d+(?:\.\d+)?)|(?P<word>[A-Za-z_][A-Za-z_0-9.]*)
    |(?P<punct>[(),\[\]])""",
    re.VERBOSE,
)
_NEGATED = {"=": "<>", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_MOVED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_OTHER = {"least": "greatest", "greatest": "least", "min": "max", "max": "min", "true": "false", "false": "true"}
_TIMES = re.compile(r"_at\b|now\(\)|clock_timestamp|start_time|interval|seconds")  # two instants are never equal
_ENDS = {
    "AND", "OR", "WHERE", "GROUP", "ORDER", "LIMIT", "FOR", "RETURNING", "OFFSET", "HAVING", "UNION", "THEN", "WHEN",
    "ELSE", "END", "CROSS", "JOIN", "LEFT", "ON", "FROM", "SET",
}  # fmt: skip
_STARTS = {"WHERE", "ON", "AND", "OR", "WHEN", "HAVING"}
_LOCK = {"UPDATE", "SHARE", "NO", "KEY", "OF", "SKIP", "LOCKED", "NOWAIT"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int
    end: int
    depth: int  # how many parentheses are open around it; a parenthesis has that of its outside


def edits(source: str) -> Iterator[Edit]:
    """Every fault that can be made in the SQL of a module."""
    places = Places(source)
    for name, literal in _literals(ast.parse(source)):
        span = places.of(literal)
        if _IS_SQL.search(source[slice(*span)]):
            for start, end, new, what in faults(source, *span):
                yield Edit(start, end, new, name, what, span)


def faults(source: str, start: int = 0, end: int | None = None) -> list[tuple[int, int, str, str]]:
    """Of one text: from where, to where, what stands there instead, and what is wrong with it."""
    return list(_Statement(source, start, len(source) if end is None else end).faults())


def _literals(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The texts of a module that are no docstrings, with the name that they are given or the function they are in."""
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement
        name = getattr(target, "id", None) or getattr(target, "name", "")
        docstrings = {id(node.value) for node in ast.walk(statement) if isinstance(node, ast.Expr)}
        waiting: list[ast.AST] = [statement]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                if id(node) not in docstrings:
                    yield name, node
                continue
            waiting.extend(ast.iter_child_nodes(node))


class _Statement:
    def __init__(self, source: str, start: int, end: int) -> None:
        self._source = source
        self._tokens: list[Token] = []
        depth = 0
        for found in _TOKEN.finditer(source, start, end):
            text = found.group()
            if text == ")":
                depth -= 1
            self._tokens.append(Token(found.lastgroup or "", text, found.start(), found.end(), depth))
            if text == "(":
                depth += 1
        self._assignments = set(self._find_assignments())

    def faults(self) -> Iterator[tuple[int, int, str, str]]:
        for number, token in enumerate(self._tokens):
            if token.kind == "op":
                yield from self._operator(number, token)
            elif token.kind == "number":
                yield from self._number(number, token)
            elif token.text in _OTHER and (self._text(number + 1) == "(" or token.text in ("true", "false")):
                yield token.start, token.end, _OTHER[token.text], f"{token.text} becomes {_OTHER[token.text]}"
            elif token.kind == "word" and token.text.isupper():
                yield from self._keyword(number, token)

    def _operator(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        text = token.text
        if text in _NEGATED and number not in self._assignments:
            following = self._tokens[number + 1]
            if following.text in ("ANY", "ALL"):
                all_or_any = "ALL" if following.text == "ANY" else "ANY"
                yield token.start, following.end, f"{_NEGATED[text]} {all_or_any}", "the comparison is turned round"
                return
            yield token.start, token.end, _NEGATED[text], "the comparison is turned round"
            if text in _MOVED and not _TIMES.search(self._condition(number)):
                yield token.start, token.end, _MOVED[text], "the bound moves by one"
        elif text in "+-*/" and self._is_value(number - 1):
            other = {"+": "-", "-": "+", "*": "/", "/": "*"}[text]
            if self._text(number + 1) not in (")", ",") and self._tokens[number - 1].text[-1] != ".":
                yield token.start, token.end, other, f"{text} becomes {other}"
        elif text == "-":
            yield token.start, token.end, "", "the sign is dropped"

    def _number(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        if token.text.isdigit() and self._text(number - 1) not in ("LIMIT", "OFFSET", "SELECT"):
            yield token.start, token.end, str(int(token.text) + 1), "one off"

    def _keyword(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        match token.text:
            case "AND" | "OR":
                yield from self._dropped_terms(number, token)
                if token.text == "OR":
                    yield token.start, token.end, "AND", "OR becomes AND"
            case "WHERE" | "ON" | "HAVING" if self._text(number + 1) != "CONFLICT":
                stop = self._end(number)
                if stop > number + 1 and self._text(stop) not in ("AND", "OR"):
                    span = self._tokens[number + 1].start, self._tokens[stop - 1].end
                    yield *span, "true", f"the condition after {token.text} is dropped"
            case "ON":
                yield from self._conflict(number, token)
            case "NOT" if self._text(number - 1) != "IS" and self._text(number + 1) != "NULL":
                yield token.start, token.end, "", "NOT is dropped"
            case "NULL" if self._text(number - 1) == "IS":
                yield token.start, token.end, "NOT NULL", "IS NULL becomes IS NOT NULL"
            case "NULL" if self._text(number - 1) == "NOT" and self._text(number - 2) == "IS":
                yield self._tokens[number - 1].start, token.end, "NULL", "IS NOT NULL becomes IS NULL"
            case "EXISTS" if self._text(number - 1) != "NOT":
                yield token.start, token.end, "NOT EXISTS", "EXISTS becomes NOT EXISTS"
            case "IN":
                if self._text(number - 1) != "NOT":
                    yield token.start, token.end, "NOT IN", "IN becomes NOT IN"
                yield from self._members(number + 1)
            case "DISTINCT" if self._text(number - 1) != "IS":
                yield token.start, token.end, "", "DISTINCT is dropped"
            case "FOR" if self._text(number + 1) in _LOCK:
                yield from self._lock(number, token)
            case "ORDER":
                yield from self._order(number)
            case "SET":
                yield from self._sets(number)
            case "LIMIT" if not self._text(number + 1).isdigit() or int(self._text(number + 1)) < 10:
                yield token.start, self._tokens[number + 1].end, "", "LIMIT is dropped"

    def _dropped_terms(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        """The term after this AND or OR, and the one before it if that is the first."""
        stop = self._end(number)
        yield token.start, self._tokens[stop - 1].end, "", f"a term of {token.text} is dropped"
        before = number - 1
        while before >= 0 and not self._begins(before, token.depth):
            before -= 1
        if before >= 0 and self._text(before) not in ("AND", "OR"):
            first = self._tokens[before + 1].start
            yield first, token.end, "", f"the first term of {token.text} is dropped"

    def _begins(self, number: int, depth: int) -> bool:
        token = self._tokens[number]
        return (token.depth == depth and token.text in _STARTS) or (token.depth < depth and token.text == "(")

    def _end(self, number: int) -> int:
        """The token after the condition that this keyword begins."""
        depth = self._tokens[number].depth
        for later in range(number + 1, len(self._tokens)):
            token = self._tokens[later]
            if token.depth < depth or (token.depth == depth and (token.text in _ENDS or token.text == ",")):
                return later
        return len(self._tokens)

    def _conflict(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        stop = number + 1
        while stop < len(self._tokens) and self._text(stop) != "RETURNING" and self._tokens[stop].depth >= token.depth:
            stop += 1
        yield token.start, self._tokens[stop - 1].end, "", "ON CONFLICT is dropped"
        for later in range(number, stop - 2):
            if self._text(later) == "DO" and self._text(later + 1) == "UPDATE":
                span = self._tokens[later].start, self._tokens[stop - 1].end
                yield *span, "DO NOTHING", "DO UPDATE becomes DO NOTHING"

    def _lock(self, number: int, token: Token) -> Iterator[tuple[int, int, str, str]]:
        stop = number + 1
        while stop < len(self._tokens) and (self._text(stop) in _LOCK or self._text(stop - 1) == "OF"):
            stop += 1
        words = self._source[token.start : self._tokens[stop - 1].end]
        yield token.start, self._tokens[stop - 1].end, "", f"{words} is dropped"
        if words.endswith("SKIP LOCKED"):
            start, end = self._tokens[stop - 2].start, self._tokens[stop - 1].end
            yield start, end, "", "SKIP LOCKED is dropped"

    def _order(self, number: int) -> Iterator[tuple[int, int, str, str]]:
        depth = self._tokens[number].depth
        last = number + 1
        for later in range(number + 2, len(self._tokens) + 1):
            token = self._tokens[later] if later < len(self._tokens) else None
            over = token is None or token.depth < depth or (token.depth == depth and token.text in _ENDS)
            if over or (token is not None and token.depth == depth and token.text == ","):
                end = self._tokens[last]
                if end.text == "DESC":
                    yield end.start, end.end, "", "the order is turned round"
                elif end.text != "BY":
                    yield end.end, end.end, " DESC", "the order is turned round"
            if over:
                return
            last = later

    def _members(self, number: int) -> Iterator[tuple[int, int, str, str]]:
        """Each member of a list of literals, if there are several."""
        stop = number + 1
        while stop < len(self._tokens) and self._tokens[stop].kind in ("string", "number", "punct"):
            if self._text(stop) == ")":
                break
            stop += 1
        members = [token for token in self._tokens[number + 1 : stop] if token.kind in ("string", "number")]
        if self._text(stop) != ")" or len(members) < 2:
            return
        for token, before, after in zip(members, [None, *members], [*members[1:], None], strict=False):
            start = before.end if before is not None and after is None else token.start
            yield start, after.start if after is not None else token.end, "", f"{token.text} is dropped from the list"

    def _sets(self, number: int) -> Iterator[tuple[int, int, str, str]]:
        """Each assignment of a SET that makes several."""
        parts = self._parts(number)
        if len(parts) < 2:
            return
        for place, (first, last) in enumerate(parts):
            start = self._tokens[first].start if place == 0 else self._tokens[parts[place - 1][1]].end
            end = self._tokens[parts[1][0]].start if place == 0 else self._tokens[last].end
            yield start, end, "", "an assignment is dropped"

    def _parts(self, number: int) -> list[tuple[int, int]]:
        """First and last token of each assignment after this SET."""
        depth, parts, first = self._tokens[number].depth, [], number + 1
        for later in range(number + 1, len(self._tokens) + 1):
            token = self._tokens[later] if later < len(self._tokens) else None
            over = token is None or token.depth < depth or (
                token.depth == depth and token.text in ("WHERE", "FROM", "RETURNING")
            )  # fmt: skip
            if over or (token is not None and token.depth == depth and token.text == ","):
                parts.append((first, later - 1))
                first = later + 1
            if over:
                break
        return parts

    def _find_assignments(self) -> Iterator[int]:
        for number, token in enumerate(self._tokens):
            if token.text == "SET":
                for first, last in self._parts(number):
                    yield from (
                        place for place in range(first, last + 1) if self._text(place) == "=" and place < first + 2
                    )

    def _condition(self, number: int) -> str:
        """What stands around a comparison."""
        return self._source[
            self._tokens[max(number - 6, 0)].start : self._tokens[min(number + 8, len(self._tokens) - 1)].end
        ]

    def _is_value(self, number: int) -> bool:
        if number < 0:
            return False
        token = self._tokens[number]
        return token.kind in ("number", "param", "string") or token.text == ")" or (
            token.kind == "word" and not token.text.isupper()
        )  # fmt: skip

    def _text(self, number: int) -> str:
        return self._tokens[number].text if 0 <= number < len(self._tokens) else ""

"""Small faults in Python: what a slip of the hand would make of the code, one place at a time.

Comparisons are turned round or moved by one, `and` and `or` change places, `not` is dropped, whole numbers are one
off, `min` and `max` change places, a value is not returned, a condition always or never holds, an error is not raised,
a call is not made. Texts, types, logging and the words of errors are left alone.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_SWAPPED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
_WRITTEN = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "in",
    ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip
_SUMS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
}


@dataclass(frozen=True, slots=True)
class Edit:
    """Characters `start` to `end` of a source become `new`. `where` names the function or statement, `what` the fault;
    `scope` is what of the source may not change if this is to be the same mutant tomorrow."""

    start: int
    end: int
    new: str
    where: str
    what: str
    scope: tuple[int, int]


def edits(source: str) -> Iterator[Edit]:
    """Every fault that can be made in the Python of a module."""
    return _Module(source).edits()


class Places:
    """Where a node lies in its source, in characters."""

    def __init__(self, source: str) -> None:
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        """`column` in bytes, as ast has it."""
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        return self._starts[line - 1] + len(text.encode()[:column].decode())

    def of(self, node: ast.AST) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)


class _Module:
    def __init__(self, source: str) -> None:
        self._source = source
        self._places = Places(source)
        self._names: list[str] = []
        self._scope = (0, 0)
        self._returns_bool = False

    def edits(self) -> Iterator[Edit]:
        for statement in ast.parse(self._source).body:
            if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                self._scope = self._places.of(statement)
            yield from self._faults(statement)

    def _faults(self, node: ast.AST) -> Iterator[Edit]:
        if isinstance(node, ast.FunctionDef):
            yield from self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._names.append(node.name)
            for statement in node.body:
                if not isinstance(statement, ast.FunctionDef):
                    self._scope = self._places.of(statement)
                yield from self._faults(statement)
            self._names.pop()
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self._faults(node.value)
        elif isinstance(node, ast.JoinedStr) or _is_logging(node):
            return
        else:
            yield from self._own(node)
            if not isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom)):
                for child in ast.iter_child_nodes(node):
                    yield from self._faults(child)

    def _function(self, node: ast.FunctionDef) -> Iterator[Edit]:
        before = self._scope, self._returns_bool
        self._scope = self._places.of(node)
        self._returns_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
        self._names.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                yield from self._faults(default)
        for statement in node.body:
            yield from self._faults(statement)
        self._names.pop()
        self._scope, self._returns_bool = before

    def _own(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Compare():
                yield from self._comparison(node)
            case ast.BoolOp():
                word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from self._between(left, right, word, other)
            case ast.UnaryOp(op=ast.Not()):
                start, _ = self._places.of(node)
                yield self._edit((start, start + 3), "", "not is dropped")
            case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
                start, _ = self._places.of(node)
                yield self._edit((start, start + 1), "", "the sign is dropped")
            case ast.BinOp() if type(node.op) in _SUMS:
                yield from self._between(node.left, node.right, *_SUMS[type(node.op)])
            case ast.AugAssign() if type(node.op) in _SUMS:
                sign, other = _SUMS[type(node.op)]
                yield from self._between(node.target, node.value, f"{sign}=", f"{other}=")
            case ast.Constant(value=bool()):
                yield self._edit(self._places.of(node), str(not node.value), "the other truth")
            case ast.Constant(value=int()):
                for number in (node.value + 1, node.value - 1):
                    yield self._edit(self._places.of(node), str(number), "one off")
            case ast.Call(func=ast.Name(id="min" | "max" as name)):
                yield self._edit(self._places.of(node.func), "max" if name == "min" else "min", "the other end")
            case ast.Return(value=ast.expr() as value) if not _is_nothing(value):
                span = self._places.of(value)
                if not self._returns_bool:
                    yield self._edit(span, "None", "nothing is returned")
                elif not isinstance(value, (ast.Compare, ast.Constant)):
                    yield self._edit(span, f"not ({self._text(span)})", "the contrary is returned")
            case ast.If() | ast.IfExp():
                for truth in ("False", "True"):
                    yield self._edit(self._places.of(node.test), truth, f"the condition is {truth}")
            case ast.Raise():
                yield self._edit(self._places.of(node), "pass", "nothing is raised")
            case ast.Expr(value=ast.Call()):
                yield self._edit(self._places.of(node), "pass", "the call is dropped")

    def _comparison(self, node: ast.Compare) -> Iterator[Edit]:
        for left, operator, right in zip((node.left, *node.comparators), node.ops, node.comparators, strict=False):
            for other in _SWAPPED[type(operator)]:
                yield from self._between(left, right, _WRITTEN[type(operator)], other)

    def _between(self, left: ast.AST, right: ast.AST, word: str, other: str) -> Iterator[Edit]:
        gap = self._places.of(left)[1], self._places.of(right)[0]
        found = self._source.find(word, *gap)
        if found >= 0:
            yield self._edit((found, found + len(word)), other, f"{word} becomes {other}")

    def _edit(self, span: tuple[int, int], new: str, what: str) -> Edit:
        return Edit(*span, new, ".".join(self._names) or self._named(), what, self._scope)

    def _named(self) -> str:
        return self._text(self._scope).partition("=")[0].partition(":")[0].strip()[:40]

    def _text(self, span: tuple[int, int]) -> str:
        return self._source[slice(*span)]


def _is_logging(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
    return False


def _is_nothing(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None

"""Which statements a program can run: those of the core that its code refers to, directly or through other code.

The sources are read, not run. A function counts as used where its name stands, a class with all its methods.
"""

import ast
import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

from sqlalchemy import TextClause

ROOT = Path(__file__).parents[1]
Place = tuple[str, str]  # a module, and a name that it defines


class Module:
    """What a source file defines and what it imports."""

    def __init__(self, name: str) -> None:
        path = ROOT.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.name = name
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for statement in tree.body:
            for defined in _names(statement):
                self.definitions[defined] = statement

    def uses(self, part: ast.stmt) -> Iterator[Place]:
        """What a definition, or a part of one, refers to. Names of other packages are left out."""
        for node in ast.walk(part):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and _is_module(self._full(node.value))
            ):
                yield self._full(node.value), node.attr
            elif isinstance(node, ast.Name) and node.id in self.definitions:
                yield self.name, node.id
            elif isinstance(node, ast.Name) and node.id in self.imports:
                module, _, its_name = self.imports[node.id].rpartition(".")
                if _is_module(module):
                    yield module, its_name

    def _full(self, name: ast.Name) -> str:
        return self.imports.get(name.id, "")


def places(package: str, having: str = "") -> Iterator[Place]:
    """Everything that the files of a package define, or that one file does: only files with that text."""
    path = ROOT.joinpath(*package.split("."))
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        if having not in file.read_text(encoding="utf-8"):
            continue
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield from ((name, defined) for defined in _module(name).definitions)


def statements(roots: Iterable[Place], without: Iterable[Place] = ()) -> dict[str, str]:
    """The text of every named statement that the roots reach, by its place, `without` those reached through these."""
    seen: set[Place] = set(without)
    waiting = list(roots)
    while waiting:
        place = waiting.pop()
        module, name = place
        if place in seen or name not in _module(module).definitions:
            continue
        seen.add(place)
        waiting.extend(_uses(place))
    texts = {place: _text(place) for place in sorted(seen.difference(without))}
    return {".".join(place): found for place, found in texts.items() if found is not None}


def with_system_transactions(package: str) -> Iterator[Place]:
    """The functions and classes of a package that begin a transaction of the system."""
    for module, name in places(package):
        words = {node.attr for node in ast.walk(_module(module).definitions[name]) if isinstance(node, ast.Attribute)}
        if words & {"begin_system", "read_system"}:
            yield module, name


def read_only_blocks(package: str) -> Iterator[tuple[str, list[Place]]]:
    """Where each transaction of a package begins that may only read, and what its block refers to."""
    for module, name in places(package, having=".read"):
        for node in ast.walk(_module(module).definitions[name]):
            if isinstance(node, ast.With) and any(_reads(item.context_expr) for item in node.items):
                uses = (_module(module).uses(statement) for statement in node.body)
                yield f"{module}:{node.lineno}", list(chain.from_iterable(uses))


def _reads(begun: ast.expr) -> bool:
    """Whether it is a call of `Database.read` or `read_system`."""
    return isinstance(begun, ast.Call) and isinstance(begun.func, ast.Attribute) and begun.func.attr.startswith("read")


def _names(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


@cache
def _text(place: Place) -> str | None:
    module, name = place
    if not module.startswith("services.core."):
        return None
    value = getattr(importlib.import_module(module), name, None)
    return value.text if isinstance(value, TextClause) else None


@cache
def _uses(place: Place) -> tuple[Place, ...]:
    module, name = place
    return tuple(dict.fromkeys(_module(module).uses(_module(module).definitions[name])))


@cache
def _module(name: str) -> Module:
    return Module(name)


@cache
def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return bool(name) and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())

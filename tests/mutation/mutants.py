"""A mutant: a module with one small fault, and the names by which it is known again."""

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.mutation import in_python, in_sql
from tests.mutation.targets import TARGETS


@dataclass(frozen=True, slots=True)
class Mutant:
    """`key` stays the same as long as the statement or function around the fault does."""

    target: str
    language: str
    where: str
    what: str
    line: int
    key: str
    original: str
    source: str

    @property
    def path(self) -> str:
        return TARGETS[self.target].path

    @property
    def lines(self) -> tuple[str, str]:
        """The lines that the fault changes, before and after, without their margins."""
        old, new = [], []
        for line in difflib.ndiff(self.original.splitlines(), self.source.splitlines()):
            if line.startswith("- "):
                old.append(line[2:].strip())
            elif line.startswith("+ "):
                new.append(line[2:].strip())
        return " ".join(old), " ".join(new)

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(self.original.splitlines(), self.source.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def of(target: str, root: Path) -> list[Mutant]:
    """All mutants of a module, in the order of its lines, the SQL first. None of them fails to compile."""
    source = (root / TARGETS[target].path).read_text(encoding="utf-8")
    found: list[Mutant] = []
    seen = {source}
    keys: dict[str, int] = {}
    for language, module in (("sql", in_sql), ("python", in_python)):
        for edit in sorted(module.edits(source), key=lambda edit: edit.start):
            mutated = source[: edit.start] + edit.new + source[edit.end :]
            if mutated in seen or not _compiles(mutated):
                continue
            seen.add(mutated)
            scope = source[slice(*edit.scope)]
            offset = edit.start - edit.scope[0]
            name = f"{target}\n{edit.where}\n{scope}\n{offset}\n{edit.end - edit.start}\n{edit.new}"
            key = hashlib.sha256(name.encode()).hexdigest()[:12]
            keys[key] = keys.get(key, 0) + 1
            line = source.count("\n", 0, edit.start) + 1
            found.append(Mutant(target, language, edit.where, edit.what, line, f"{key}{keys[key]}", source, mutated))
    return found


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True

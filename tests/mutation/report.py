"""What a run of mutants came to: a score for each module, and every survivor with its place and its fault."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.mutants import Mutant
from tests.mutation.runs import Result

_DATA = Path(__file__).with_name("equivalent.toml")


class Equivalents:
    """Mutants that no test can tell from the original, each with the reason, from `equivalent.toml`.

    An entry names the function or statement, the line as it is and, unless it speaks of every fault of that line, the
    line as the fault leaves it. The module is only a heading: an entry holds wherever its statement moves.
    """

    def __init__(self, path: Path = _DATA) -> None:
        entries = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._entries = [(target, entry) for target, listed in entries.items() for entry in listed]
        self._met: set[int] = set()

    def reason(self, mutant: Mutant) -> str | None:
        old, new = (_squeezed(line) for line in mutant.lines)
        for number, (_, entry) in enumerate(self._entries):
            if entry["in"] != mutant.where or _squeezed(entry["line"]) != old:
                continue
            if "becomes" not in entry or _squeezed(entry["becomes"]) == new:
                self._met.add(number)
                return str(entry["because"])
        return None

    def unmet(self) -> list[str]:
        """Entries that speak of no mutant that was asked about."""
        return [
            f"{target}, {entry['in']}: {entry['line']}"
            for number, (target, entry) in enumerate(self._entries)
            if number not in self._met
        ]


def write(mutants: Sequence[Mutant], results: dict[str, Result], equivalents: Equivalents, *, whole: bool) -> bool:
    """Prints the report. Returns whether every mutant that was tried is killed or explained. `whole`: these are all
    mutants that there are, so an explanation that speaks of none of them is out of date."""
    targets = list(dict.fromkeys(mutant.target for mutant in mutants))
    survivors: list[Mutant] = []
    counts: dict[str, Counter[str]] = {target: Counter() for target in targets}
    for mutant in mutants:
        count = counts[mutant.target]
        reason = equivalents.reason(mutant)
        result = results.get(mutant.key)
        count["mutants"] += 1
        if reason is not None:
            count["equivalent"] += 1
        elif result is None:
            count["not tried"] += 1
        else:
            count[result.outcome] += 1
            if result.outcome == "survived":
                survivors.append(mutant)
    for mutant in survivors:
        print(f"\nsurvived: {mutant.path}:{mutant.line} {mutant.where}: {mutant.what}\n{mutant.diff}")
    columns = ("mutants", "killed", "timed out", "survived", "equivalent", "not tried")
    print(f"\n{'module':<10}" + "".join(f"{name:>11}" for name in columns) + f"{'score':>8}")
    total: Counter[str] = Counter()
    for target in targets:
        print(_row(target, counts[target], columns))
        total += counts[target]
    if len(targets) > 1:
        print(_row("all", total, columns))
    for entry in equivalents.unmet() if whole else ():
        print(f"equivalent.toml explains what is no mutant any more: {entry}")
    return not survivors


def _row(name: str, count: Counter[str], columns: Sequence[str]) -> str:
    killed = count["killed"] + count["timed out"]
    tried = killed + count["survived"]
    score = f"{100 * killed / tried:.1f} %" if tried else "-"
    return f"{name:<10}" + "".join(f"{count[column]:>11,}" for column in columns) + f"{score:>8}"


def _squeezed(line: str) -> str:
    return " ".join(line.split())

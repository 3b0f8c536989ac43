"""`python -m tests.mutation [MODULE...]`: breaks the code in one small place at a time, and sees whether a test fails.

Ends with 1 if a mutant survived that `equivalent.toml` does not explain. Results are kept in `mutation-results/`, and
the next call goes on from there.
"""

import argparse
import random
import signal
import sys
import warnings
from pathlib import Path

from tests.mutation import mutants, report, runs
from tests.mutation.targets import TARGETS

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "mutation-results" / "results.jsonl"


def main() -> int:
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the slots are stopped on the way out
    names = asked.module + [name for name in asked.modules if name in TARGETS]
    warnings.simplefilter("ignore", SyntaxWarning)  # what a fault makes of `is` and the like
    found = [mutant for name in names or TARGETS for mutant in mutants.of(name, _ROOT)]
    whole = not (names or asked.only or asked.sample)
    if asked.only:
        found = [mutant for mutant in found if mutant.language == asked.only]
    if asked.sample:
        chosen = random.Random(asked.seed).sample(found, min(asked.sample, len(found)))
        found = [mutant for mutant in found if mutant in chosen]
    if asked.again:
        _RESULTS.unlink(missing_ok=True)
    notebook = runs.Notebook(_RESULTS, _ROOT)
    equivalents = report.Equivalents()
    if not asked.report:
        waiting = [
            mutant for mutant in found if not notebook.knows(mutant) and equivalents.reason(mutant) is None
        ]  # fmt: skip
        waiting.sort(key=lambda mutant: mutant.language != "sql")  # the statements first: there the promises are kept
        try:
            runs.run(waiting, notebook, _ROOT, asked.slots)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
    return 0 if report.write(found, notebook.results, equivalents, whole=whole) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    # The default is no list: a list would be no choice.
    parser.add_argument("modules", nargs="*", choices=("all", *TARGETS), default="all", metavar="MODULE")
    parser.add_argument("--module", action="append", choices=tuple(TARGETS), default=[], help="the same, by name")
    parser.add_argument("--sample", type=int, default=0, help="only so many, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("sql", "python"))
    parser.add_argument("--slots", type=int, default=2, help="how many run at a time, each with servers of its own")
    parser.add_argument("--again", action="store_true", help="forget the results so far")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is known")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""The page of results: `python -m tests.storm.report storm-results` reads what `make chaos` has written there, draws
tests/storm/results.svg, and puts the tables into tests/README.md."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.report import machine
from tests.storm import chart

TESTS = Path(__file__).parents[1]
BEGIN, END = "<!-- The storm's results: written by tests.storm.report -->", "<!-- End of the storm's results -->"
RIVALS = {
    "celery": "Celery, late acknowledgement, overwriting PUTs",
    "leases": "leases in Postgres, overwriting PUTs",
    "leases and If-None-Match": "the same with `If-None-Match`",
}


def page(storm: Mapping[str, Any], rivals: Mapping[str, Mapping[str, Any]], date: str, made_on: str) -> str:
    """Markdown."""
    faults = sum(storm["faults"].values())
    share = "" if storm["share"] == 1 else f" ({storm['share']:g} of the whole storm)"
    command = "make chaos" if storm["share"] == 1 else f"STORM={storm['share']:g} make chaos"
    head = (
        f"{storm['images']:,} images in {storm['jobs']:,} jobs of three tenants, and {faults:,} faults in "
        f"{storm['seconds'] / 60:.0f} minutes{share}, seed {storm['seed']}; {made_on}, {date}, `{command}`."
    )
    nothing = f"{storm['lost']}, {storm['failed']}, {storm['twice']}"
    leases = f"{storm['leases_lost']:,}; {storm['in_shards']:,}"
    lines = [
        head,
        "",
        "![Images done over time, and when which faults struck](storm/results.svg)",
        "",
        "| After the storm | |",
        "|---|---|",
        f"| images lost, failed without a cause, visible twice | {nothing} |",
        f"| images with other bytes than recorded, or unlike a second rendering | {storm['wrong']} |",
        f"| reads of jobs meanwhile; of these with wrong counts | {storm['reads']:,}; {storm['wrong_reads']} |",
        f"| settlements refused, because the lease was lost | {storm['fenced']:,} |",
        f"| leases lost, counted by image; images stored in shards | {leases} |",
    ]
    if rivals:
        most = max(sum(rival["faults"].values()) for rival in rivals.values())
        told = f"Naive workers on the same servers, under {most} of the same faults each (`chaos/test_rivals.py`)."
        lines += [
            "",
            told,
            "",
            "| Workers | lost | other bytes than recorded |",
            "|---|---|---|",
            *(_row(RIVALS.get(name, name), rival) for name, rival in rivals.items()),
            _row("Presswork, in the storm above", storm),
        ]
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> str:
    return f"| {name} | {found['lost']:,} of {found['images']:,} | {found['wrong']:,} |"


def put(readme: str, text: str) -> str:
    """The README with that text between its two marks. Raises ValueError if it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"The page has no line {BEGIN if not begin else END!r}: put it where the results are to stand."
        )
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.storm.report", description="Makes the page of results of a storm, with its chart."
    )
    parser.add_argument("folder", type=Path, help="the folder with storm.json and rivals.json, as make chaos leaves it")
    parser.add_argument("--page", type=Path, default=TESTS / "README.md", help="the page with the two marks")
    parser.add_argument("--chart", type=Path, default=TESTS / "storm" / "results.svg", help="the picture to write")
    asked = parser.parse_args(argv)
    storm, rivals = asked.folder / "storm.json", asked.folder / "rivals.json"
    try:
        found = json.loads(storm.read_text())
        others = json.loads(rivals.read_text()) if rivals.exists() else {}
        date = time.strftime("%Y-%m-%d", time.gmtime(storm.stat().st_mtime))
        written = put(asked.page.read_text(), page(found, others, date, machine()))
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    asked.page.write_text(written)
    asked.chart.write_text(chart.draw(found))
    print(f"{asked.page} and {asked.chart}: {found['images']:,} images, {sum(found['faults'].values()):,} faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every table says in the README of retention what prunes it."""

import re
from pathlib import Path

from services.core.db import tables

README = Path(__file__).parents[2] / "services" / "core" / "retention" / "README.md"


def test_every_table_has_a_line_that_says_what_prunes_it():
    part = README.read_text(encoding="utf-8").partition("## What prunes each table")[2]
    said = [name for line in part.splitlines() if line.startswith("|") for name in re.findall(r"`([a-z_]+)`", line)]
    named = [name for line in part.splitlines() if line.startswith("| `") for name in
             re.findall(r"`([a-z_]+)`", line.split("|")[1])]  # fmt: skip
    assert set(tables.metadata.tables) - set(named) == set()
    assert len(named) == len(set(named)) and said

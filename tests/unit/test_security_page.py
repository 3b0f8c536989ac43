"""Each control of the security page names tests that there are, or says why it has none."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / ".github" / "SECURITY.md"


def test_every_control_names_tests_that_there_are_or_says_why_not() -> None:
    rows = re.findall(r"^\| S(\d+) \| (.+?) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 41))
    for number, said, tests in rows:
        named = re.findall(r"\[\S+\]\((\S+)\): `(\w+)`", tests)
        assert named or said.startswith("Not here: "), number
        for link, name in named:
            assert f"def {name}(" in (PAGE.parent / link).read_text(encoding="utf-8"), (number, name)

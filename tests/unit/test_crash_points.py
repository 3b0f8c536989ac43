"""The list of crash points, compared with the calls; and what one does when it is armed."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.core import crash_points
from services.core.crash_points import POINTS, CrashPointError, arm, crash_point

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_points, "_armed", None)


def test_each_point_of_the_list_stands_at_one_place_and_no_other_is_called() -> None:
    called = Counter(name for folder in ("services", "worker", "scheduler") for name in _called(ROOT / folder))
    assert called == dict.fromkeys(POINTS, 1)


def _called(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = (
                isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "crash_point"
            )
            if is_call and path.name != "crash_points.py":
                assert isinstance(node.args[0], ast.Constant), f"{path}: the name is written out"
                yield node.args[0].value


def test_each_point_says_what_it_separates_and_what_holds() -> None:
    for name, text in POINTS.items():
        separated, semicolon, holds = text.partition("; ")
        assert separated and semicolon and holds.endswith("."), name


def test_a_point_that_is_not_armed_does_nothing() -> None:
    crash_point("image.stored")
    arm("image.stored", "error")
    crash_point("shard.stored")


def test_an_armed_point_acts_once_and_at_the_time_that_was_asked_for() -> None:
    told: list[bool] = []
    arm("image.stored", "error", 2, lambda: told.append(True))
    crash_point("image.stored")
    assert not told
    with pytest.raises(CrashPointError, match=r"image\.stored"):
        crash_point("image.stored")
    crash_point("image.stored")
    assert told == [True]


@pytest.mark.parametrize("wrong", [("nowhere", "kill", 1), ("image.stored", "explode", 1), ("image.stored", "kill", 0)])
def test_what_no_list_has_cannot_be_armed(wrong: tuple[str, str, int]) -> None:
    with pytest.raises(ValueError, match="PRESSWORK_CRASH_POINT must be"):
        arm(*wrong)


@pytest.mark.parametrize(
    ("told", "code"),
    [("", 0), ("image.stored:kill", -9), ("image.stored:kill:2", 0), ("image.stored:error", 1), ("nonsense", 1),
     ("image.stored:kill:x", 1)],
)  # fmt: skip
def test_the_variable_arms_a_program_that_a_test_starts(told: str, code: int) -> None:
    program = "from services.core.crash_points import crash_point; crash_point('image.stored')"
    environ = {"PYTHONPATH": str(ROOT)} | ({crash_points.VARIABLE: told} if told else {})
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=False)
    assert ended.returncode == code, ended.stderr

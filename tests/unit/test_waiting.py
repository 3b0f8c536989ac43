"""What `presswork wait` and `presswork top` make of times, estimates, keys and screens; and how little is imported."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from services.cli import keyboard, top_screen, waiting
from services.cli.exits import Usage
from services.cli.top_feed import View
from services.cli.top_screen import Chosen

NOW = datetime(2026, 11, 26, 19, 30, tzinfo=UTC)


def job(number: int, low: float | None = None, high: float | None = None, **fields: Any) -> Any:
    counts = {"total": 8, "done": 3, "failed": 1, "cancelled": 0, "queued": 4, "rendering": 0}
    return {
        "id": f"job_{number:013}", "status": "in_progress", "paused": False, "counts": counts, "finished_at": None,
        "eta_seconds": low, "eta_low_seconds": low, "eta_high_seconds": high, "rate": 0.0, "labels": {"for": "shop"},
    } | fields  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("19:31", NOW + timedelta(minutes=1)),
        ("19:30", NOW + timedelta(days=1)),  # now is not later than now
        ("06:00", datetime(2026, 11, 27, 6, tzinfo=UTC)),
        ("2026-12-01T06:00+01:00", datetime(2026, 12, 1, 5, tzinfo=UTC)),
    ],
)
def test_a_time_is_the_next_one_on_the_clock_or_a_moment_with_its_zone(text: str, expected: datetime) -> None:
    assert waiting.moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["24:00", "6", "2026-12-01T06:00", "2026-11-26T19:30+00:00", "soon"])
def test_a_time_that_has_passed_or_has_no_zone_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="--done-by is"):
        waiting.moment(text, NOW)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([job(1, 50, 60)], "in time"),
        ([job(1, 50, 61)], "at risk"),
        ([job(1, 61, 90), job(2, 1, 2)], "late"),
        ([job(1, None, None), job(2, 1, 2)], None),
        ([job(1, 90, 90, finished_at="2026-11-26T19:30:00Z")], "in time"),
    ],
)
def test_a_promise_is_late_by_the_lower_estimate_and_at_risk_by_the_upper(jobs: list[Any], expected: str) -> None:
    assert waiting.outlook(jobs, NOW + timedelta(seconds=60), NOW) == expected


def test_keys_are_told_apart_even_when_typed_fast() -> None:
    assert keyboard.parsed("j\x1b[Ap\x1bOB\r\x1b[5~\x1b[3~q") == [
        "j", "up", "p", "down", "enter", "page up", "\x1b[3~", "q",
    ]  # fmt: skip
    assert keyboard.parsed("\x1b") == ["escape"]


@pytest.mark.parametrize(("width", "height"), [(60, 8), (80, 24), (200, 50)])
def test_a_screen_never_has_more_lines_than_the_terminal(width: int, height: int) -> None:
    overview: Any = {
        "status": "degraded", "issues": [{"status": "degraded", "message": "No worker is ready yet. " * 9}] * 9,
        "rates": {"now": 1.5, "hour": 2.0}, "waiting": {"queued": 9, "rendering": 1, "seconds": 90.0},
        "accelerators": {"busy": 1, "idle": 0},
    }  # fmt: skip
    view = View(overview, tuple(job(number, 5.0, 9.0) for number in range(100)))
    rows = top_screen.visible_rows(view, width, height)
    console = Console(width=width, height=height)
    with console.capture() as printed:
        console.print(top_screen.screen(view, Chosen(job(7)["id"], first=5), "", width, height))
    lines = printed.get().splitlines()
    assert len(lines) <= max(height, 11)
    assert sum("█" in line for line in lines) == rows
    assert all(len(line) <= width for line in lines)


def test_a_command_that_talks_to_a_server_imports_no_library_of_databases_or_stores() -> None:
    heavy = "{'sqlalchemy', 'psycopg', 'alembic', 'boto3', 'fastapi', 'celery', 'pyarrow', 'liquid', 'numpy'}"
    code = f"import sys, services.cli.app; print(*{heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("\n", "")

"""What is wrong with when a catalogue's definition runs: for the API, and for the command, which has the core alone."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.core.model.errors import InvalidSubmission, Problem
from services.core.schedules import times, zones


def problems(given: Mapping[str, Any], least: float = 0.0) -> list[Problem]:
    """What is wrong with when a definition runs, which is checked or as somebody wrote it. `least`: the least interval
    in seconds that the server allows; the command does not know it."""
    schedule = given.get("schedule")
    cron, zone = (
        (schedule.get(name) for name in ("cron", "timezone")) if isinstance(schedule, Mapping) else (None, None)
    )
    if not isinstance(cron, str) or not isinstance(zone, str | None):
        return []  # whoever checks the definition's form says so
    try:
        times.read(cron, zones.zone(zone or "UTC"), datetime.now(UTC), least)
    except InvalidSubmission as error:
        return [inside(problem) for problem in error.problems]
    return []


def inside(problem: Problem) -> Problem:
    """A problem of a schedule, named as a part of the definition that asks for it."""
    return replace(problem, param=f"schedule.{problem.param}" if problem.param else "schedule")

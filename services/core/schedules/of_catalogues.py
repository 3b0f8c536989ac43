"""The schedule that a catalogue's definition asks for. It is one like any other, named after the catalogue."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues.catalogues import Catalogue
from services.core.model.errors import InvalidSubmission, NotFound, Problem
from services.core.schedules import schedules, times, zones
from services.core.schedules.asked import ScheduleRequest
from services.core.settings import Settings

_PREFIX = "catalogue."


def name_of(catalogue: str) -> str:
    """The name of a catalogue's schedule."""
    return _PREFIX + catalogue


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
        return [_inside(problem) for problem in error.problems]
    return []


def follow(connection: Connection, settings: Settings, catalogue: Catalogue, base_url: str) -> None:
    """Makes the schedule what the definition says, or deletes it. One that is paused stays paused.

    Raises:
        InvalidSubmission: what is wrong with `schedule`.
        Conflict: there are too many schedules.
    """
    asked, name = catalogue.definition.get("schedule"), name_of(catalogue.name)
    if asked is None:
        forget(connection, catalogue)
        return
    try:
        paused = schedules.find(connection, catalogue.tenant_id, name).paused
    except NotFound:
        paused = False
    wanted = ScheduleRequest(**asked, target={"catalogue": {"name": catalogue.name}}, paused=paused)
    try:
        schedules.put(connection, settings, catalogue.tenant_id, name, wanted, base_url)
    except InvalidSubmission as error:
        raise InvalidSubmission([_inside(problem) for problem in error.problems]) from None


def forget(connection: Connection, catalogue: Catalogue) -> None:
    """Deletes the schedule, if there is one."""
    try:
        schedules.delete(connection, catalogue.tenant_id, name_of(catalogue.name))
    except NotFound:
        return


def _inside(problem: Problem) -> Problem:
    return replace(problem, param=f"schedule.{problem.param}" if problem.param else "schedule")

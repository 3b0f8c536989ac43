"""The schedule that a catalogue's definition asks for. It is one like any other, named after the catalogue."""

import json

from sqlalchemy import Connection

from services.core.catalogues.catalogues import Catalogue
from services.core.model.errors import InvalidSubmission, NotFound
from services.core.schedules import definition_times, schedules
from services.core.schedules.asked import ScheduleRequest
from services.core.schedules.targets import Checked
from services.core.settings import Settings

_PREFIX = "catalogue."


def name_of(catalogue: str) -> str:
    """The name of a catalogue's schedule."""
    return _PREFIX + catalogue


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
    body = {"name": catalogue.name}
    wanted = ScheduleRequest(**asked, target={"catalogue": body}, paused=paused)
    target = Checked("catalogue", json.dumps(body))
    try:
        schedules.put(connection, settings, catalogue.tenant_id, name, wanted, target, base_url)
    except InvalidSubmission as error:
        raise InvalidSubmission([definition_times.inside(problem) for problem in error.problems]) from None


def forget(connection: Connection, catalogue: Catalogue) -> None:
    """Deletes the schedule, if there is one."""
    try:
        schedules.delete(connection, catalogue.tenant_id, name_of(catalogue.name))
    except NotFound:
        return

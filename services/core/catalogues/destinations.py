"""Where a catalogue's published version is copied to, and how far that has come. Every write of
`catalogue_destinations`.

naming -> copying -> deleting -> done. Naming says which object each picture becomes; the pointer at the place moves
between copying and deleting. An error does not change the step, so whoever tries again goes on there. Functions take
an open transaction and never commit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from services.core.catalogues.catalogues import Catalogue
from services.core.db.statements import statement
from services.core.events import log

Step = Literal["naming", "copying", "deleting", "done"]
State = Literal["copying", "deleting", "done", "failed"]
LONGEST_PAUSE_SECONDS = 300
_COLUMNS = (
    "catalogue_id, place, rule, version, step, reached, announced, counts, error, attempts, next_at, began_at, "
    "finished_at, coalesce(next_at <= now(), false) AS is_due"
)
_SUBJECT = "'catalogue/' || (SELECT name FROM catalogues WHERE catalogues.id = catalogue_id)"
_DATA = "jsonb_build_object('version', version, 'place', place)"
# The pointer stays what it is, unless the place is another.
_WANT = statement("destinations.want")("""
INSERT INTO catalogue_destinations AS d (catalogue_id, tenant_id, place, rule, version, step, next_at)
VALUES (:id, :tenant_id, :place, :rule, :version, 'naming', now())
ON CONFLICT (catalogue_id) DO UPDATE SET
  place = excluded.place, rule = excluded.rule, version = excluded.version, step = 'naming', reached = '{}',
  announced = CASE WHEN d.place = excluded.place THEN d.announced END,
  counts = '{}', error = NULL, attempts = 0, next_at = now(), began_at = now(), finished_at = NULL
WHERE (d.place, d.rule, d.version) IS DISTINCT FROM (excluded.place, excluded.rule, excluded.version)
""")
_FIND = statement("destinations.find")(
    f"SELECT {_COLUMNS} FROM catalogue_destinations WHERE catalogue_id = ANY(CAST(:ids AS bigint[]))"  # noqa: S608
)
_ADVANCE = statement("destinations.advance")(f"""
WITH moved AS (
  UPDATE catalogue_destinations d SET step = :step, reached = :reached, error = NULL, attempts = 0,
    counts = d.counts || (SELECT coalesce(jsonb_object_agg(key, value::bigint + coalesce((d.counts->>key)::bigint, 0)),
                                          '{{}}') FROM jsonb_each_text(CAST(:counts AS jsonb))),
    announced = CASE WHEN :points THEN version ELSE announced END,
    next_at = CASE WHEN :step = 'done' THEN NULL ELSE next_at END,
    finished_at = CASE WHEN :step = 'done' THEN now() END
  WHERE catalogue_id = :id AND step = :before RETURNING *
), logged AS (
  {log.of_each("moved", "'catalogue.copied'", subject=_SUBJECT, data=_DATA)} WHERE :points
)
SELECT count(*) FROM moved
""")  # noqa: S608  our own text
_FAIL = statement("destinations.fail")(f"""
WITH moved AS (
  UPDATE catalogue_destinations SET error = CAST(:error AS jsonb), attempts = attempts + 1,
    next_at = CASE WHEN :again
      THEN now() + make_interval(secs => least(:longest, 5 * power(2, least(attempts, 10)))) END
  WHERE catalogue_id = :id RETURNING *
), logged AS (
  {log.of_each("moved", "'catalogue.copy_failed'", subject=_SUBJECT, data=_DATA)} WHERE attempts = 1
)
SELECT count(*) FROM moved
""")  # noqa: S608  our own text
_AGAIN = statement("destinations.again")("""
UPDATE catalogue_destinations SET step = 'naming', reached = '{}', counts = '{}', attempts = 0, next_at = now()
WHERE catalogue_id = :id AND error IS NOT NULL
""")
_RESTART = statement("destinations.restart")("""
UPDATE catalogue_destinations SET step = 'naming', reached = '{}', counts = '{}', next_at = now(), finished_at = NULL
WHERE catalogue_id = :id
""")
_FORGET = statement("destinations.forget")("DELETE FROM catalogue_destinations WHERE catalogue_id = :id")


@dataclass(frozen=True, slots=True)
class Destination:
    """`version` is the one that is copied or was copied last, `announced` the one that the pointer at the place names.
    `reached` says how far the step has come. `error` has a code and a message; with `next_at` it is tried again."""

    catalogue_id: int
    place: str
    rule: bytes
    version: int
    step: Step
    reached: tuple[str, ...]
    announced: int | None
    counts: dict[str, int]
    error: dict[str, str] | None
    attempts: int
    next_at: datetime | None
    began_at: datetime
    finished_at: datetime | None
    is_due: bool

    @property
    def state(self) -> State:
        """What people are told of it."""
        if self.error is not None:
            return "failed"
        return "copying" if self.step == "naming" else self.step

    @property
    def bucket(self) -> str:
        return self.place.partition("/")[0]

    def key(self, name: str) -> str:
        """The key of an object of the place."""
        folder = self.place.partition("/")[2]
        return f"{folder}/{name}" if folder else name


def digest(template: str) -> bytes:
    """What tells one rule for names from another."""
    return hashlib.blake2b(template.encode(), digest_size=16).digest()


def want(connection: Connection, catalogue: Catalogue, place: str, template: str, version: int) -> None:
    """The version is to be copied there by that rule. Nothing changes if it is, or is about to be."""
    values = {"id": catalogue.id, "tenant_id": catalogue.tenant_id, "version": version}
    connection.execute(_WANT, values | {"place": place, "rule": digest(template)})


def find(connection: Connection, catalogue_id: int) -> Destination | None:
    return these(connection, [catalogue_id]).get(catalogue_id)


def these(connection: Connection, catalogue_ids: Sequence[int]) -> dict[int, Destination]:
    """The destinations of these catalogues, of those that have one."""
    found = (_destination(row) for row in connection.execute(_FIND, {"ids": list(catalogue_ids)}))
    return {one.catalogue_id: one for one in found}


def advance(
    connection: Connection, found: Destination, step: Step, reached: Sequence[str] = (), *,
    counts: Mapping[str, int] | None = None, points: bool = False,
) -> None:  # fmt: skip
    """So far it has come, unless it is at another step by now: then it was begun again. `counts` are added to those
    before; `points`: the pointer names the version now."""
    values = {"id": found.catalogue_id, "step": step, "reached": list(reached), "counts": json.dumps(counts or {})}
    connection.execute(_ADVANCE, values | {"before": found.step, "points": points})


def fail(connection: Connection, catalogue_id: int, code: str, message: str, *, again: bool) -> None:
    """Records why it does not go on. `again`: it is tried again after a pause, which doubles each time."""
    values = {"id": catalogue_id, "error": json.dumps({"code": code, "message": message}), "again": again}
    connection.execute(_FAIL, values | {"longest": LONGEST_PAUSE_SECONDS})


def again(connection: Connection, catalogue_id: int) -> None:
    """What has failed is tried again at once, from the beginning."""
    connection.execute(_AGAIN, {"id": catalogue_id})


def restart(connection: Connection, catalogue_id: int) -> None:
    """The pointer at the place may have moved back: all is done again, until it moves. Nothing changes if it is copied
    to nowhere any more."""
    connection.execute(_RESTART, {"id": catalogue_id})


def forget(connection: Connection, catalogue_id: int) -> None:
    """Nothing is copied any more. The objects stay where they are."""
    connection.execute(_FORGET, {"id": catalogue_id})


def _destination(row: Any) -> Destination:
    return Destination(
        row.catalogue_id, row.place, bytes(row.rule), row.version, row.step, tuple(row.reached), row.announced,
        row.counts, row.error, row.attempts, row.next_at, row.began_at, row.finished_at, row.is_due,
    )  # fmt: skip

"""Workers: seen while they start, registered when their pipeline has passed its canary, and seen with every heartbeat.

A worker's id belongs to one process and is never reused. Functions take an open transaction.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.fleet.abilities import Abilities

RATE_SECONDS = 60
LIVE_SECONDS = 15.0  # a worker that was not seen for longer is silent
GONE = ("stopped", "crashed")
_NUMBERED = re.compile(r"^[a-z]+:[0-9]+ ")

_REGISTER = statement("workers.register")("""
INSERT INTO workers (id, host, pid, device, model, model_revision, state, report)
VALUES (:id, :host, :pid, :device, :model, :model_revision, :state, CAST(:report AS jsonb))
ON CONFLICT (id) DO UPDATE SET device = excluded.device, model = excluded.model,
  model_revision = excluded.model_revision, state = excluded.state, report = excluded.report, doing = '',
  seen_at = now()
""")
_STARTS = statement("workers.starts")("""
INSERT INTO workers (id, host, pid, device, model, model_revision, state, doing)
VALUES (:id, :host, :pid, '', '', '', 'starting', :doing)
ON CONFLICT (id) DO UPDATE SET doing = excluded.doing, seen_at = now()
""")
_STARTING = statement("workers.starting")("""
SELECT doing FROM workers
WHERE state = 'starting' AND seen_at BETWEEN now() - interval '15 seconds' AND now() + interval '15 seconds'
ORDER BY started_at, id
""")
_BEAT = statement("workers.beat")("""
UPDATE workers SET seen_at = now(), state = :state, doing = :doing, report = report || CAST(:report AS jsonb),
  busy_at = CASE :state WHEN 'busy' THEN now() ELSE busy_at END
WHERE id = :id
""")

_SEEN = statement("workers.seen")("""
SELECT EXISTS (SELECT FROM workers
               WHERE host = :host AND state NOT IN ('starting', 'crashed')
                 AND seen_at BETWEEN now() - interval '10 seconds' AND now() + interval '10 seconds')
""")
_LISTED = statement("workers.listed")("""
SELECT w.id, w.host, w.pid, w.device, w.model, w.state, w.doing, w.started_at, w.seen_at, w.busy_at,
       w.report, w.model_revision,
       (SELECT json_agg(json_build_array(r.width, r.height, r.steps, r.guided, r.seconds_per_image)) FROM (
          SELECT width, height, steps, guided, seconds_per_image FROM render_rates
          WHERE render_rates.device = w.host || ' ' || w.device AND render_rates.model_revision = w.model_revision
          ORDER BY width * height, width, steps, guided DESC LIMIT 64) r) AS measured,
       abs(extract(epoch FROM now() - w.seen_at))::double precision AS silent,
       coalesce(held.images, 0) AS rendering, coalesce(ended.images, 0) AS images,
       EXISTS (SELECT FROM drains d WHERE d.host = w.host AND d.device = w.device) AS drained
FROM workers w
LEFT JOIN LATERAL (
  SELECT sum(images) AS images FROM claims WHERE worker_id = w.id AND state = 'open'
) held ON true
LEFT JOIN (
  SELECT worker_id, sum(images) AS images FROM claims
  WHERE state = 'settled' AND ended_at > now() - make_interval(secs => :seconds) GROUP BY worker_id
) ended ON ended.worker_id = w.id
ORDER BY w.host, w.device, w.pid, w.id
LIMIT :most
""")
_FORGET = statement("workers.forget")("DELETE FROM workers WHERE seen_at < now() - interval '1 day'")


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch that a worker renders: `images` in `of` slots of one size, and how many of its steps are done."""

    images: int
    of: int
    size: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Devices:
    """How many live workers of a device and a model there are in each state; `rate` in images a second."""

    device: str
    model: str
    busy: int
    idle: int
    drained: int
    sick: int
    starting: int
    rate: float


@dataclass(frozen=True, slots=True)
class ScorerTrouble:
    """A scorer that `failed` images since the worker started, or for which `late` ones did not wait, and why the last
    one failed. `off`: the worker leaves it out until it starts again."""

    name: str
    failed: int
    late: int
    why: str
    off: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds an image of a shape takes on a worker's device in a full batch, as measured."""

    size: str
    steps: int
    guided: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that was seen during the last day, `silent` seconds ago. It holds `rendering` images, and settled `rate`
    images a second during the last minute. `drained`: it takes nothing new. `busy_at`: when it was last seen busy.
    What it says of itself is None or empty if it does not say it: `memory` in bytes, used and there; `classes` are the
    reproducibility classes of its batches, the largest batch first."""

    id: str
    host: str
    pid: int
    device: str
    device_kind: str
    model: str
    revision: str
    state: str
    doing: str
    started_at: datetime
    seen_at: datetime
    silent: float
    rendering: int
    rate: float
    drained: bool
    busy_at: datetime | None
    reproducibility_class: str
    sizes: tuple[str, ...]
    able: Abilities
    measured: tuple[Measured, ...]
    batch: Batch | None
    fill: float | None
    memory: tuple[int, int] | None
    scorers: tuple[ScorerTrouble, ...]

    @property
    def is_live(self) -> bool:
        return self.silent < LIVE_SECONDS and self.state not in GONE

    @property
    def batch_sizes(self) -> list[int]:
        """The declared sizes of its batches, largest first."""
        return sorted(self.able.classes, reverse=True)

    @property
    def classes(self) -> list[str]:
        return [self.able.classes[size] for size in self.batch_sizes]


def kind(device: str) -> str:
    """The device without its number in its host."""
    return _NUMBERED.sub("", device)


def without_host(place: str) -> str:
    """The kind of a device that is recorded as its host and its name: "h cuda:0 NVIDIA H200"."""
    return kind(place.partition(" ")[2]) or place


def listed(connection: Connection) -> list[Worker]:
    """Every worker, by host and device. Takes a system transaction: claims are of all tenants."""
    rows = connection.execute(_LISTED, {"seconds": RATE_SECONDS, "most": 1000})
    return [
        Worker(
            id=row.id,
            host=row.host,
            pid=row.pid,
            device=row.device,
            model=row.model,
            revision=row.model_revision,
            state=row.state,
            doing=row.doing,
            started_at=row.started_at,
            seen_at=row.seen_at,
            silent=row.silent,
            rendering=row.rendering,
            rate=row.images / RATE_SECONDS,
            drained=row.drained,
            busy_at=row.busy_at,
            measured=tuple(
                Measured(f"{width}x{height}", steps, guided, seconds)
                for width, height, steps, guided, seconds in row.measured or ()
            ),
            **_said(row.report, row.device),
        )
        for row in rows
    ]


def devices(fleet: Iterable[Worker]) -> list[Devices]:
    """The live workers counted by device and model, without saying where they run."""
    kinds: dict[tuple[str, str], list[Worker]] = {}
    for worker in fleet:
        if worker.is_live:
            kinds.setdefault((kind(worker.device), worker.model), []).append(worker)
    found = []
    for (device, model), members in sorted(kinds.items()):
        states = ["drained" if one.drained and one.state == "ready" else one.state for one in members]
        counts = {name: states.count(name) for name in ("busy", "drained", "sick", "starting")}
        found.append(
            Devices(device, model, idle=states.count("ready"), rate=sum(one.rate for one in members), **counts)
        )
    return found


def _said(report: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What a worker says of itself. Another release may say it in other words, which are not shown."""
    batch, memory = report.get("batch"), report.get("memory")
    names = Batch.__slots__
    return {
        "reproducibility_class": str(report.get("class", "")),
        "device_kind": str(report.get("device_kind") or kind(device)),
        "sizes": tuple(map(str, report.get("sizes") or ())),
        "able": Abilities.read(report),
        "batch": Batch(*(batch[name] for name in names))
        if isinstance(batch, dict) and set(names) <= set(batch)
        else None,
        "fill": report.get("fill"),
        "memory": (int(memory[0]), int(memory[1])) if memory and memory[1] else None,
        "scorers": tuple(
            ScorerTrouble(name, said["failed"], said["late"], said["why"], said["off"])
            for name, said in (report.get("scorers") or {}).items()
            if {"failed", "late", "why", "off"} <= said.keys()
        ),
    }


def seen(connection: Connection, host: str) -> bool:
    """Whether a worker of that host was seen in the last ten seconds."""
    return bool(connection.execute(_SEEN, {"host": host}).scalar_one())


def register(
    connection: Connection,
    worker_id: str,
    *,
    host: str,
    pid: int,
    device: str,
    model: str,
    revision: str,
    state: str,
    report: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """`state` is ready or sick; `device` is the name that users see; `report` is what the worker says of itself."""
    values = {"id": worker_id, "host": host, "pid": pid, "device": device, "model": model}
    said = {"model_revision": revision, "state": state, "report": json.dumps(dict(report))}
    connection.execute(_REGISTER, values | said)


def starts(connection: Connection, worker_id: str, *, host: str, pid: int, doing: str) -> None:
    """Records that the worker is starting, and what it does right now."""
    connection.execute(_STARTS, {"id": worker_id, "host": host, "pid": pid, "doing": doing})


def starting(connection: Connection) -> list[str]:
    """What each worker does that is starting, the oldest first."""
    return list(connection.execute(_STARTING).scalars())


def beat(
    connection: Connection,
    worker_id: str,
    state: str,
    doing: str = "",
    report: Mapping[str, Any] = MappingProxyType({"batch": None}),
) -> bool:
    """Records a heartbeat. `state` is ready, busy, sick, stopped or crashed. What `report` holds takes the place of
    what was said before. False: the worker is not registered."""
    values = {"id": worker_id, "state": state, "doing": doing, "report": json.dumps(dict(report))}
    return connection.execute(_BEAT, values).rowcount == 1


def forget(connection: Connection) -> None:
    """Deletes workers that were not seen for a day."""
    connection.execute(_FORGET)
